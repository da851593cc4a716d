"""The machine-vision states of OPC 40100-1 as one table. A refused event names both and changes nothing."""

from enum import StrEnum

from edge_daemon.errors import EdgeError


class State(StrEnum):
    """States of a station, by their names in OPC 40100-1."""

    PREOPERATIONAL = "Preoperational"
    HALTED = "Halted"
    ERROR = "Error"
    INITIALIZED = "Initialized"
    READY = "Ready"
    SINGLE_EXECUTION = "SingleExecution"
    CONTINUOUS_EXECUTION = "ContinuousExecution"


class StationEvent(StrEnum):
    """What can happen to a station."""

    RECIPES_VERIFIED = "recipes verified"
    ALL_WELL = "all well"
    TRIGGER = "trigger"
    RUN = "run"
    IDLE = "idle"
    FAULT = "fault"
    RECOVERED = "recovered"
    HALT = "halt"
    RESUME = "resume"


class RefusedEventError(EdgeError):
    """The event has no place in this state; nothing changed."""


_S, _E = State, StationEvent
_OPERATIONAL = (_S.INITIALIZED, _S.READY, _S.SINGLE_EXECUTION, _S.CONTINUOUS_EXECUTION)

TABLE: dict[tuple[State, StationEvent], State] = {
    (_S.PREOPERATIONAL, _E.RECIPES_VERIFIED): _S.INITIALIZED,
    (_S.INITIALIZED, _E.ALL_WELL): _S.READY,
    (_S.READY, _E.TRIGGER): _S.SINGLE_EXECUTION,
    (_S.READY, _E.RUN): _S.CONTINUOUS_EXECUTION,
    (_S.SINGLE_EXECUTION, _E.TRIGGER): _S.SINGLE_EXECUTION,
    (_S.SINGLE_EXECUTION, _E.IDLE): _S.READY,
    (_S.CONTINUOUS_EXECUTION, _E.RUN): _S.CONTINUOUS_EXECUTION,
    (_S.CONTINUOUS_EXECUTION, _E.IDLE): _S.READY,
    (_S.ERROR, _E.RECOVERED): _S.INITIALIZED,
    (_S.HALTED, _E.RESUME): _S.PREOPERATIONAL,
    **{(state, _E.FAULT): _S.ERROR for state in (_S.PREOPERATIONAL, _S.ERROR, *_OPERATIONAL)},
    **{(state, _E.HALT): _S.HALTED for state in _S},
}


def step(state: State, event: StationEvent) -> State:
    """The state after the event. Raises RefusedEventError, naming both, when the table has no such row."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise RefusedEventError(f"event {event.value!r} has no place in state {state.value}") from None
