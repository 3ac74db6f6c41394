"""The rollout over HTTP: its status, and commands of a person."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from nextvec.errors import ServingError
from nextvec.rollout.lifecycle import intervene
from nextvec.rollout.records import ConflictError, LedgerError
from nextvec.rollout.status import caution
from nextvec.rollout.transition import Command, Verb
from nextvec.serving import wire
from nextvec.serving.canary import Canary
from nextvec.serving.wire import RefusedError

VERBS: dict[str, Verb] = {
    "pause": "pause",
    "resume": "resume",
    "abort": "abort",
    "promote": "promote",
}  # not "start": its checks need the folder of the run
MOST_REASON = 500  # letters
T = TypeVar("T")


class Control:
    """Handlers of status and commands. The ledger is read in a thread, so other requests do not wait for its disk."""

    def __init__(self, canary: Canary | None) -> None:
        self._canary = canary

    async def rollouts(self, _: Request) -> Response:
        if self._canary is None:
            return _json({"current": None, "past": [], "trouble": None, "watching": False})
        return _json(await _in_thread(self._canary.status))

    async def intervene(self, request: Request) -> Response:
        canary = self._canary
        if canary is None:
            raise RefusedError(404, "this server takes part in no rollout; start it with --ledger")
        rollout = wire.named(request.path_params["rollout"], "rollout")
        verb = VERBS.get(request.path_params["verb"])
        if verb is None:
            raise RefusedError(404, f"a rollout can {', '.join(VERBS)}")
        command = Command(verb, request.state.actor, _reason(await request.body()))
        record = await _in_thread(lambda: intervene(canary.ledger, rollout, command))
        return _json({"rollout": rollout, "state": record.state, "epoch": record.epoch, "warning": caution(record)})


def _reason(body: bytes) -> str:
    if not body:
        return ""
    match list(wire.parse(body).items()):
        case [("reason", str(reason))] if len(reason) <= MOST_REASON:
            return reason
        case _:
            raise RefusedError(400, f"the body may hold a reason of at most {MOST_REASON} letters, and nothing else")


async def _in_thread(call: Callable[[], T]) -> T:
    try:
        return await asyncio.get_running_loop().run_in_executor(None, call)
    except ConflictError as error:
        raise RefusedError(409, str(error)) from None
    except LedgerError:
        raise RefusedError(503, "the ledger of rollouts cannot be read or written; predictions are still answered") from None
    except ServingError as error:
        raise RefusedError(404, str(error)) from None


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type=wire.JSON)
