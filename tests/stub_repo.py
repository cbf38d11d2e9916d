"""One repository of the stub hub: a folder, and what is wrong with how it is served."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Repo:
    """A folder served as a repository, and what is wrong with it.

    Attributes:
        cuts: where each of the next answers for weights breaks off, in bytes; the last one stays for ever if
            ``cuts_always``.
        silent_after: weights stop to come at that byte, and the connection stays.
        cut_listing, cut_headers: where the listing, or a part of the weights, breaks off each time.
        status: what every request is answered with instead.
        announced: sizes of weight files that are told instead of the true ones.
        names_alone: the listing tells neither sizes nor hashes, as some mirrors' do.
        redirect: another hub's address, to which every file is redirected.
    """

    folder: Path
    commit: str
    gated: bool = False
    private: bool = False
    cuts: list[int] = field(default_factory=list)
    cuts_always: bool = False
    silent_after: int | None = None
    silent_listing: bool = False
    status: int | None = None
    listing: bytes | None = None
    cut_listing: int | None = None
    cut_headers: int | None = None
    announced: dict[str, int] = field(default_factory=dict)
    names_alone: bool = False
    extra_files: list[dict] = field(default_factory=list)
    replaced: dict[str, bytes] = field(default_factory=dict)
    ignores_ranges: bool = False
    redirect: str | None = None

    def files(self) -> dict[str, dict]:
        """What the listing says of each file."""
        told = {}
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            content = path.read_bytes()
            name = path.relative_to(self.folder).as_posix()
            entry = {"size": len(content), "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
            if name.endswith((".safetensors", ".bin")):
                size = self.announced.get(name, len(content))
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 99}
            told[name] = entry
        return told

    def limits(self, file: str, start: int, *, is_part: bool) -> tuple[int | None, int | None]:
        """After how many bytes of an answer that begins at ``start`` it breaks off, and falls silent."""
        if not file.endswith(".safetensors"):
            return None, None
        if is_part:
            return self.cut_headers, None
        silent_after = None if self.silent_after is None else self.silent_after - start
        if not self.cuts:
            return None, silent_after
        return (self.cuts[0] if self.cuts_always and len(self.cuts) == 1 else self.cuts.pop(0)), silent_after
