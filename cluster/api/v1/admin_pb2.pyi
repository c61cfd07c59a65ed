from cluster.api.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdminServiceGetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AdminServiceGetClusterResponse(_message.Message):
    __slots__ = ("cluster", "slots", "controller")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    cluster: _inference_pb2.GetClusterResponse
    slots: _containers.RepeatedCompositeFieldContainer[Slot]
    controller: str
    def __init__(self, cluster: _Optional[_Union[_inference_pb2.GetClusterResponse, _Mapping]] = ..., slots: _Optional[_Iterable[_Union[Slot, _Mapping]]] = ..., controller: _Optional[str] = ...) -> None: ...

class Slot(_message.Message):
    __slots__ = ("name", "state", "node", "num_deaths", "overridden", "drained", "host")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    NUM_DEATHS_FIELD_NUMBER: _ClassVar[int]
    OVERRIDDEN_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    node: str
    num_deaths: int
    overridden: bool
    drained: bool
    host: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., node: _Optional[str] = ..., num_deaths: _Optional[int] = ..., overridden: _Optional[bool] = ..., drained: _Optional[bool] = ..., host: _Optional[str] = ...) -> None: ...

class SlotMix(_message.Message):
    __slots__ = ("slot", "role", "prefill_tokens_per_step", "max_decode_rows")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    MAX_DECODE_ROWS_FIELD_NUMBER: _ClassVar[int]
    slot: str
    role: str
    prefill_tokens_per_step: int
    max_decode_rows: int
    def __init__(self, slot: _Optional[str] = ..., role: _Optional[str] = ..., prefill_tokens_per_step: _Optional[int] = ..., max_decode_rows: _Optional[int] = ...) -> None: ...

class SetMixesRequest(_message.Message):
    __slots__ = ("mixes", "force")
    MIXES_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    mixes: _containers.RepeatedCompositeFieldContainer[SlotMix]
    force: bool
    def __init__(self, mixes: _Optional[_Iterable[_Union[SlotMix, _Mapping]]] = ..., force: _Optional[bool] = ...) -> None: ...

class SetMixesResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LiftMixesRequest(_message.Message):
    __slots__ = ("slots",)
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, slots: _Optional[_Iterable[str]] = ...) -> None: ...

class LiftMixesResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("slot", "force", "for_restart")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    FOR_RESTART_FIELD_NUMBER: _ClassVar[int]
    slot: str
    force: bool
    for_restart: bool
    def __init__(self, slot: _Optional[str] = ..., force: _Optional[bool] = ..., for_restart: _Optional[bool] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("num_left",)
    NUM_LEFT_FIELD_NUMBER: _ClassVar[int]
    num_left: int
    def __init__(self, num_left: _Optional[int] = ...) -> None: ...

class WatchDecisionsRequest(_message.Message):
    __slots__ = ("num_past",)
    NUM_PAST_FIELD_NUMBER: _ClassVar[int]
    num_past: int
    def __init__(self, num_past: _Optional[int] = ...) -> None: ...

class WatchDecisionsResponse(_message.Message):
    __slots__ = ("decision",)
    DECISION_FIELD_NUMBER: _ClassVar[int]
    decision: _inference_pb2.Decision
    def __init__(self, decision: _Optional[_Union[_inference_pb2.Decision, _Mapping]] = ...) -> None: ...
