"""Sessions and the system prompt: what owners see of their conversations, and do with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, FailFast, Field, StringConstraints
from starlette.responses import Response

from inferapi.api.auth import Access, owner_of
from inferapi.api.json_route import JsonRoute, export_route
from inferapi.api.schema import MAX_TOKEN_COUNT, Body, SessionId, TurnId
from inferapi.application.sessions import Sessions, new_session_id
from inferapi.domain.chat import Session, SessionLimits, SessionRef, SessionSummary, Turn

EXPORT_FORMAT = "inferapi.session"
IMPORT_PATH = "/sessions/import"
_MOST_TURNS = 100_000
_SYSTEM_PROMPT_CHARACTERS = 65_536
_TURN_BYTES = 512  # beside its texts
_MOST_ON_A_PAGE = 100
_LAST_MOMENT_S = 253_402_300_799  # of the year 9999

SystemPrompt = Annotated[str, StringConstraints(max_length=_SYSTEM_PROMPT_CHARACTERS)]
MessageText = Annotated[str, StringConstraints(max_length=4_000_000)]
Moment = Annotated[float, Field(ge=0, le=_LAST_MOMENT_S, description="Seconds since the epoch.")]
TokenCount = Annotated[int, Field(ge=0, le=1000 * MAX_TOKEN_COUNT)]


class HistoryMessage(BaseModel):
    """One message of a session."""

    role: str
    content: str


class SystemPromptBody(Body):
    """What new sessions start with."""

    prompt: SystemPrompt


class MessageReply(BaseModel):
    """What happened."""

    message: str


class ForkBody(Body):
    """Where to part ways."""

    turns: int | None = Field(None, ge=0, le=_MOST_TURNS, description="Keep the first so many turns. Default: all.")
    session_id: SessionId | None = Field(None, description="Of the new session. Default: one that nobody can guess.")


class RewindBody(Body):
    """How far back."""

    turns: int = Field(1, ge=1, le=_MOST_TURNS, description="Drop the last so many turns.")


class ExportedTurn(Body):
    """One turn of an export."""

    turn_id: TurnId
    user: MessageText
    assistant: MessageText
    model: Annotated[str, StringConstraints(max_length=512)]
    created_at: Moment
    prompt_tokens: TokenCount
    completion_tokens: TokenCount
    finish_reason: Literal["stop", "length"] = "stop"

    def turn(self) -> Turn:
        """The turn."""
        return Turn(
            self.turn_id,
            self.user,
            self.assistant,
            self.model,
            self.created_at,
            self.prompt_tokens,
            self.completion_tokens,
            self.finish_reason,
        )


class SessionExport(Body):
    """A session to take along: what ``GET /sessions/{id}/export`` gives and ``POST /sessions/import`` takes."""

    format: Literal["inferapi.session"]
    version: int = Field(ge=1, le=1)
    session_id: SessionId | None = Field(None, description="Default: one that nobody can guess.")
    system_prompt: SystemPrompt
    created_at: Moment | None = Field(None, description="When it began where it came from; not kept.")
    # One error is enough: a hundred thousand of them would take seconds to collect, on the event loop.
    turns: Annotated[list[ExportedTurn], FailFast()] = Field(max_length=_MOST_TURNS)


def sessions_router(sessions: Sessions, access: Access) -> APIRouter:
    """The routes, on their use case."""
    route_class = export_route(most_values=export_values(sessions.limits))
    router = APIRouter(tags=["sessions"], route_class=route_class, dependencies=[access.needs("infer")])

    @router.get("/sessions")
    async def page(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=_MOST_ON_A_PAGE, description="At most so many.")] = 20,
        cursor: Annotated[str | None, Query(max_length=512, description="The next_cursor of the page before.")] = None,
    ) -> dict[str, Any]:
        """Your sessions, the last used first."""
        found = await sessions.page(owner_of(request), limit, cursor)
        return {"sessions": [_summary(one) for one in found.sessions], "next_cursor": found.next_cursor}

    @router.post(IMPORT_PATH, status_code=201)
    async def import_session(body: SessionExport, request: Request) -> Response:
        """Make a session of an export. Its id must be free."""
        ref = SessionRef(owner_of(request), body.session_id or new_session_id())
        session = await sessions.restore(ref, body.system_prompt, [turn.turn() for turn in body.turns])
        return _json(_view(session), status=201)

    @router.get("/sessions/{session_id}")
    async def read(session_id: SessionId, request: Request) -> Response:
        """The session with its whole history."""
        return _json(_view(await sessions.read(SessionRef(owner_of(request), session_id))))

    @router.delete("/sessions/{session_id}", status_code=204)
    async def delete(session_id: SessionId, request: Request) -> None:
        """Forget it. A turn that is running is not stored, and its client is told so."""
        await sessions.delete(SessionRef(owner_of(request), session_id))

    @router.get("/sessions/{session_id}/export")
    async def export(session_id: SessionId, request: Request) -> Response:
        """The session as a document to keep, or to import elsewhere."""
        session = await sessions.read(SessionRef(owner_of(request), session_id))
        name = f'attachment; filename="session-{session_id}.json"'
        return _json(_export(session), headers={"Content-Disposition": name})

    @router.post("/sessions/{session_id}/fork", status_code=201)
    async def fork(session_id: SessionId, request: Request, body: ForkBody | None = None) -> Response:
        """A new session that begins as this one did."""
        body = body or ForkBody()
        ref = SessionRef(owner_of(request), session_id)
        return _json(_view(await sessions.fork(ref, body.turns, body.session_id)), status=201)

    @router.post("/sessions/{session_id}/rewind")
    async def rewind(session_id: SessionId, request: Request, body: RewindBody | None = None) -> Response:
        """Drop the last turns, to say something else or to have it answered anew."""
        turns = (body or RewindBody()).turns
        return _json(_view(await sessions.rewind(SessionRef(owner_of(request), session_id), turns)))

    return router


def system_prompt_router(sessions: Sessions, access: Access) -> APIRouter:
    """The routes, on their use case."""
    router = APIRouter(tags=["chat"], route_class=JsonRoute)

    @router.post("/system_prompt", dependencies=[access.needs("admin")])
    async def set_system_prompt(body: SystemPromptBody) -> MessageReply:
        """Set the system prompt of sessions that start from now on."""
        await sessions.set_system_prompt(body.prompt)
        return MessageReply(message="System prompt updated (will affect new sessions only)")

    @router.get("/system_prompt", dependencies=[access.needs("infer")])
    async def system_prompt() -> dict[str, str]:
        """What new sessions start with."""
        return {"prompt": await sessions.system_prompt()}

    return router


def export_bytes(limits: SessionLimits) -> int:
    """The most that an export has: texts, of which each line break and each quotation mark is escaped, and the rest."""
    return 2 * (limits.max_bytes + _SYSTEM_PROMPT_CHARACTERS) + _TURN_BYTES * limits.max_turns


def export_values(limits: SessionLimits) -> int:
    """The most JSON values that an export has: its fields, and those of each turn with the turn itself."""
    return len(SessionExport.model_fields) + 1 + (len(ExportedTurn.model_fields) + 1) * limits.max_turns


def history(session: Session) -> list[dict[str, str]]:
    """Every message, the system prompt in front."""
    return [{"role": message.role, "content": message.content} for message in session.messages()]


def _summary(summary: SessionSummary) -> dict[str, Any]:
    return {
        "session_id": summary.session_id,
        "title": summary.title,
        "turns": summary.turns,
        "created_at": summary.created_at_s,
        "used_at": summary.used_at_s,
    }


def _view(session: Session) -> dict[str, Any]:
    return {
        "session_id": session.ref.session_id,
        "title": session.title,
        "created_at": session.created_at_s,
        "used_at": session.used_at_s,
        "forgotten_turns": session.forgotten_turns,
        "full_history": history(session),
        "turns": [
            {name: value for name, value in _exported(turn).items() if name not in {"user", "assistant"}}
            for turn in session.turns
        ],
    }


def _export(session: Session) -> dict[str, Any]:
    return {
        "format": EXPORT_FORMAT,
        "version": 1,
        "session_id": session.ref.session_id,
        "system_prompt": session.system_prompt,
        "created_at": session.created_at_s,
        "turns": [_exported(turn) for turn in session.turns],
    }


def _exported(turn: Turn) -> dict[str, Any]:
    return {
        "turn_id": turn.turn_id,
        "user": turn.user,
        "assistant": turn.assistant,
        "model": turn.model,
        "created_at": turn.created_at_s,
        "prompt_tokens": turn.prompt_tokens,
        "completion_tokens": turn.completion_tokens,
        "finish_reason": turn.finish_reason,
    }


def _json(content: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")
