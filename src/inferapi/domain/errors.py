"""The error tree: what can go wrong, in words fit for the client.

::

    InferapiError
    ├── InvalidInput                what was asked for can never work
    │   ├── InvalidJson             invalid_json
    │   ├── InvalidRequest          invalid_request
    │   ├── UnsupportedMediaType    unsupported_media_type
    │   ├── BodyTooLarge            body_too_large
    │   ├── HeadTooLarge            head_too_large
    │   ├── MalformedHttp           malformed_http
    │   ├── ReceiveTimeout          receive_timeout
    │   ├── ModelNameInvalid        invalid_request
    │   ├── EmbeddingsRefused       embeddings_refused
    │   └── ContextWindowExceeded   context_length_exceeded
    ├── ModelUnavailable            the named model cannot be had
    │   ├── ModelNotFound           model_not_found
    │   ├── ModelNotAllowed         model_not_allowed
    │   ├── ModelGated              model_gated
    │   ├── ModelInvalid            model_invalid
    │   ├── UnsafeWeights           unsafe_weights
    │   ├── RemoteCodeRefused       remote_code_refused
    │   ├── QuantizationRefused     quantization_refused
    │   ├── ModelTooLarge           model_too_large
    │   ├── InsufficientMemory      insufficient_memory
    │   ├── ModelsInUse             insufficient_memory
    │   ├── InsufficientStorage     insufficient_storage
    │   ├── HubUnavailable          hub_unavailable
    │   ├── HubTimeout              hub_timeout
    │   ├── DownloadIncomplete      download_incomplete
    │   ├── LoadStalled             load_stalled
    │   └── ModelLoadFailed         model_load_failed
    ├── WrongState                  not now
    │   ├── ModelNotLoaded          model_not_loaded
    │   ├── ModelLoading            model_loading
    │   ├── LoadCancelled           load_cancelled
    │   ├── OperationInProgress     operation_in_progress
    │   ├── QueueFull               queue_full
    │   ├── TooManyConnections      too_many_connections
    │   └── ShuttingDown            shutting_down
    ├── GenerationFailed            a request that ran did not finish
    │   ├── GenerationTimeout       generation_timeout
    │   ├── GenerationAborted       generation_aborted
    │   ├── ModelCrashed            model_crashed
    │   └── OutOfMemory             insufficient_memory
    ├── SessionProblem
    │   ├── SessionNotFound         session_not_found
    │   ├── ResponseNotFound        response_not_found
    │   ├── SessionExists           session_exists
    │   ├── SessionUnreadable       session_unreadable
    │   ├── SessionBusy             session_busy
    │   ├── HistoryNotSaved         history_not_saved
    │   └── SessionStoreUnavailable session_store_unavailable
    ├── AccessDenied                who asks may not
    │   ├── Unauthenticated         unauthenticated
    │   ├── InsufficientScope       insufficient_scope
    │   ├── AnonymousRefused        anonymous_refused
    │   └── HostNotTrusted          host_not_trusted
    ├── LimitReached                one key asks for more than its share
    │   ├── RateLimitExceeded       rate_limit_exceeded
    │   └── ConcurrencyLimitExceeded concurrency_limit_exceeded
    └── UnexpectedError             internal_error: a fault of ours, whatever it was

A leaf has a stable ``code``, and a ``text`` that its facts fill in. Facts are numbers and short names:
no host, no path, nothing that a client wrote in full. The cause is chained with ``from``, for the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Self

Fact = str | int | float | bool | None


class InferapiError(Exception):
    """Root of the tree; only leaves are raised.

    Attributes:
        is_counted: the request that is told it has been counted as one that failed; see ``counts_as_rejected``.
    """

    code: ClassVar[str]
    text: ClassVar[str]

    def __init__(self, **facts: Fact) -> None:
        self.facts = facts
        self.is_counted = False
        super().__init__(self.text.format(**facts))

    def again(self) -> Self:
        """The same error for somebody else: raised anew it collects no frames of those who had it before."""
        copy = type(self)(**self.facts)
        for note in getattr(self, "__notes__", ()):
            copy.add_note(note)
        return copy

    @property
    def message(self) -> str:
        """What the client is told: the text, and what was noted on the way (``add_note``)."""
        return " ".join([str(self), *getattr(self, "__notes__", ())])


class InvalidInput(InferapiError):
    """What was asked for can never work."""


class InvalidJson(InvalidInput):
    code = "invalid_json"
    text = "The body is not valid JSON in UTF-8."


class InvalidRequest(InvalidInput):
    code = "invalid_request"
    text = "{problem}"


class UnsupportedMediaType(InvalidInput):
    code = "unsupported_media_type"
    text = "Send the body as Content-Type: application/json."


class BodyTooLarge(InvalidInput):
    code = "body_too_large"
    text = "The body is larger than {limit_bytes} bytes."


class HeadTooLarge(InvalidInput):
    code = "head_too_large"
    text = "Request line and headers are larger than {limit_bytes} bytes, or the headers are more than {limit_headers}."


class MalformedHttp(InvalidInput):
    code = "malformed_http"
    text = "This is not HTTP/1.1, or a body in too many small pieces."


class ReceiveTimeout(InvalidInput):
    code = "receive_timeout"
    text = "The request had not come whole within {timeout_s} s."


class ModelNameInvalid(InvalidInput):
    code = "invalid_request"
    text = (
        "A model name is a hub id such as 'name' or 'org/name', optionally with '@revision': "
        "letters, digits, '.', '_' and '-', never a path or a URL."
    )


class EmbeddingsRefused(InvalidInput):
    code = "embeddings_refused"
    text = "Model {model} cannot make embeddings: {reason}."


class ContextWindowExceeded(InvalidInput):
    code = "context_length_exceeded"
    text = (
        "The prompt has {prompt_tokens} tokens and max_new_tokens is {max_new_tokens}; "
        "together they exceed the context window of {context_window_tokens} tokens."
    )


class ModelUnavailable(InferapiError):
    """The named model cannot be had."""


class ModelNotFound(ModelUnavailable):
    code = "model_not_found"
    text = "Model {model} was found neither in the models folder, nor in the hub cache, nor on the hub."


class ModelNotAllowed(ModelUnavailable):
    code = "model_not_allowed"
    text = "Model {model} is not among the models that this server may load."


class ModelGated(ModelUnavailable):
    """Gated or private; ``advice`` says what to do: give a token, a valid one, or accept the terms."""

    code = "model_gated"
    text = "Model {model} is gated or private. {advice}"


class ModelInvalid(ModelUnavailable):
    code = "model_invalid"
    text = "Model {model} cannot be served: {problem}."


class UnsafeWeights(ModelUnavailable):
    code = "unsafe_weights"
    text = "Model {model} has no safetensors weights; pickle files can run code and are never loaded."


class RemoteCodeRefused(ModelUnavailable):
    code = "remote_code_refused"
    text = "Model {model} asks for code of its own (config key {key}); only transformers' own models are loaded."


class QuantizationRefused(ModelUnavailable):
    """This machine cannot quantize, or the model's weights are quantized as they are stored."""

    code = "quantization_refused"
    text = "Weights cannot be quantized to {quantization}: {problem}."


class ModelTooLarge(ModelUnavailable):
    """The model can never fit this machine; carries the byte breakdown."""

    code = "model_too_large"
    text = (
        "Model {model} needs {needed_bytes} bytes (weights {weights_bytes}, KV cache {kv_cache_bytes}, "
        "working memory {working_bytes}, process {overhead_bytes}); the {device} memory for models is "
        "{total_bytes} bytes. {hint}"
    )


class InsufficientMemory(ModelUnavailable):
    """The model would fit this machine, but not now; carries the byte breakdown."""

    code = "insufficient_memory"
    text = (
        "Model {model} needs {needed_bytes} bytes (weights {weights_bytes}, KV cache {kv_cache_bytes}, "
        "working memory {working_bytes}, process {overhead_bytes}); {available_bytes} bytes of {device} memory "
        "are free or can be freed. {hint}"
    )


class ModelsInUse(ModelUnavailable):
    """There is no place for another model: those that are loaded are in use, or pinned."""

    code = "insufficient_memory"
    text = "No model can make room now: {models} in use or pinned. POST /unload_model or /change_model takes one away."


class InsufficientStorage(ModelUnavailable):
    code = "insufficient_storage"
    text = "The disk has no room for model {model}."


class HubUnavailable(ModelUnavailable):
    code = "hub_unavailable"
    text = "Model {model} is not on this machine and the hub cannot be reached."


class HubTimeout(ModelUnavailable):
    code = "hub_timeout"
    text = "The hub took too long to answer for model {model}."


class DownloadIncomplete(ModelUnavailable):
    code = "download_incomplete"
    text = "The hub broke off the download of model {model}; files that came whole are kept for the next try."


class LoadStalled(ModelUnavailable):
    code = "load_stalled"
    text = "Loading model {model} made no progress for {timeout_s} s while {stage}; it was given up."


class ModelLoadFailed(ModelUnavailable):
    code = "model_load_failed"
    text = "Model {model} could not be loaded: {problem}."


class WrongState(InferapiError):
    """Not now."""


class ModelNotLoaded(WrongState):
    code = "model_not_loaded"
    text = "The model is not loaded; POST /load_model first."


class ModelLoading(WrongState):
    code = "model_loading"
    text = "Model {model} is still loading."


class LoadCancelled(WrongState):
    code = "load_cancelled"
    text = "Loading model {model} was cancelled."


class OperationInProgress(WrongState):
    code = "operation_in_progress"
    text = "The server is busy: {operation}. Try again when it is done."


class QueueFull(WrongState):
    code = "queue_full"
    text = "{waiting} requests are waiting already."


class TooManyConnections(WrongState):
    """Every connection that the server may have serves a request."""

    code = "too_many_connections"
    text = "{limit} connections are in use already."


class ShuttingDown(WrongState):
    code = "shutting_down"
    text = "The server is shutting down."


class GenerationFailed(InferapiError):
    """A request that ran did not finish."""


class GenerationTimeout(GenerationFailed):
    code = "generation_timeout"
    text = "The answer was not finished within {timeout_s} s."


class GenerationAborted(GenerationFailed):
    code = "generation_aborted"
    text = "The model was taken away before the answer was finished: {reason}."


class ModelCrashed(GenerationFailed):
    code = "model_crashed"
    text = "The process of model {model} ended unexpectedly; the next request starts it again."


class OutOfMemory(GenerationFailed):
    code = "insufficient_memory"
    text = "The model ran out of memory on this request."


class SessionProblem(InferapiError):
    """A session cannot be used."""


class SessionNotFound(SessionProblem):
    code = "session_not_found"
    text = "There is no such session."


class ResponseNotFound(SessionProblem):
    code = "response_not_found"
    text = "There is no such response."


class SessionExists(SessionProblem):
    code = "session_exists"
    text = "There is a session of this id already."


class SessionUnreadable(SessionProblem):
    """Damaged, or written by a later version of this server; it can still be deleted."""

    code = "session_unreadable"
    text = "What is stored of this session cannot be read: {problem}. DELETE it to use its id again."


class SessionBusy(SessionProblem):
    code = "session_busy"
    text = "Another turn of this session is running."


class HistoryNotSaved(SessionProblem):
    code = "history_not_saved"
    text = "Nothing was stored: {problem}."


class SessionStoreUnavailable(SessionProblem):
    code = "session_store_unavailable"
    text = "The session store does not answer; chats have to wait, /infer works."


class AccessDenied(InferapiError):
    """Who asks may not."""


class Unauthenticated(AccessDenied):
    code = "unauthenticated"
    text = "A valid API key is needed: send the header Authorization: Bearer <key>."


class InsufficientScope(AccessDenied):
    code = "insufficient_scope"
    text = "This API key lacks the scope {scope}."


class AnonymousRefused(AccessDenied):
    code = "anonymous_refused"
    text = (
        "This server has no API keys, so it answers its own machine alone. Its operator may set INFERAPI_API_KEYS, or "
        "INFERAPI_ALLOW_ANONYMOUS where something else authenticates."
    )


class HostNotTrusted(AccessDenied):
    code = "host_not_trusted"
    text = "This server is not called by the name in the header Host."


class LimitReached(InferapiError):
    """One key asks for more than its share; others are not concerned."""


class RateLimitExceeded(LimitReached):
    code = "rate_limit_exceeded"
    text = "This API key may send {requests_per_minute} requests a minute; the next one in {retry_after_s} s."


class ConcurrencyLimitExceeded(LimitReached):
    code = "concurrency_limit_exceeded"
    text = "This API key may have {max_concurrency} requests under way at once; they count until their answers end."


class UnexpectedError(InferapiError):
    code = "internal_error"
    text = "Something went wrong here; the server's log says what."


def leaves(root: type[InferapiError] = InferapiError) -> Iterator[type[InferapiError]]:
    """Every class of the tree that can be raised."""
    children = root.__subclasses__()
    if not children:
        yield root
    for child in children:
        yield from leaves(child)


def error_named(name: str, facts: dict[str, Fact]) -> InferapiError:
    """The error that crossed a process border as its class name and facts.

    Raises:
        KeyError: no leaf has that name.
    """
    return {leaf.__name__: leaf for leaf in leaves()}[name](**facts)
