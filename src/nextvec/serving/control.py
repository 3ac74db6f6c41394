"""The rollout over HTTP: its status, and commands of a person."""

import asyncio
from collections.abc import Callable
from typing import TypeVar, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nextvec.errors import ServingError
from nextvec.rollout.lifecycle import intervene
from nextvec.rollout.records import ConflictError, LedgerError
from nextvec.rollout.status import caution
from nextvec.rollout.transition import Command
from nextvec.serving.canary import Canary
from nextvec.serving.parameters import named
from nextvec.serving.payload import from_json
from nextvec.serving.refusal import RefusedError
from nextvec.wire.fields import Body
from nextvec.wire.media import JSON
from nextvec.wire.operations import ReasonRequest, RolloutChange, RolloutList, RolloutVerb

VERBS: dict[str, RolloutVerb] = {verb: verb for verb in get_args(RolloutVerb)}
T = TypeVar("T")


class Control:
    """Handlers of status and commands. The ledger is read in a thread, so other requests do not wait for its disk."""

    def __init__(self, canary: Canary | None) -> None:
        self._canary = canary

    async def rollouts(self, _: Request) -> Response:
        if self._canary is None:
            return _json(RolloutList(None, [], None, False))
        return _json(msgspec.convert(await _in_thread(self._canary.status), RolloutList))

    async def intervene(self, request: Request) -> Response:
        canary = self._canary
        if canary is None:
            raise RefusedError(404, "this server takes part in no rollout; start it with --ledger")
        rollout = named(request.path_params["rollout"], "rollout")
        verb = VERBS.get(request.path_params["verb"])
        if verb is None:
            raise RefusedError(404, f"a rollout can {', '.join(VERBS)}")
        body = await request.body()
        reason = from_json(body, ReasonRequest).reason if body else ""
        command = Command(verb, request.state.actor, reason)
        record = await _in_thread(lambda: intervene(canary.ledger, rollout, command))
        return _json(RolloutChange(rollout, record.state, record.epoch, caution(record)))


async def _in_thread(call: Callable[[], T]) -> T:
    try:
        return await asyncio.get_running_loop().run_in_executor(None, call)
    except ConflictError as error:
        raise RefusedError(409, str(error)) from None
    except LedgerError:
        raise RefusedError(503, "the ledger of rollouts cannot be read or written; predictions are still answered") from None
    except ServingError as error:
        raise RefusedError(404, str(error)) from None


def _json(content: Body) -> Response:
    return Response(msgspec.json.encode(content), media_type=JSON)
