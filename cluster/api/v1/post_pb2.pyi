from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("number", "ack", "hello", "challenge", "proof", "welcome", "letters", "peers_changed", "node_report", "admission", "joining", "joined", "cluster_shown", "access_changed", "leaving")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    LETTERS_FIELD_NUMBER: _ClassVar[int]
    PEERS_CHANGED_FIELD_NUMBER: _ClassVar[int]
    NODE_REPORT_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    JOINING_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_SHOWN_FIELD_NUMBER: _ClassVar[int]
    ACCESS_CHANGED_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    number: int
    ack: int
    hello: Hello
    challenge: Challenge
    proof: Proof
    welcome: Welcome
    letters: bytes
    peers_changed: PeersChanged
    node_report: NodeReport
    admission: Admission
    joining: Joining
    joined: Joined
    cluster_shown: ClusterShown
    access_changed: AccessChanged
    leaving: Leaving
    def __init__(self, number: _Optional[int] = ..., ack: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., challenge: _Optional[_Union[Challenge, _Mapping]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., letters: _Optional[bytes] = ..., peers_changed: _Optional[_Union[PeersChanged, _Mapping]] = ..., node_report: _Optional[_Union[NodeReport, _Mapping]] = ..., admission: _Optional[_Union[Admission, _Mapping]] = ..., joining: _Optional[_Union[Joining, _Mapping]] = ..., joined: _Optional[_Union[Joined, _Mapping]] = ..., cluster_shown: _Optional[_Union[ClusterShown, _Mapping]] = ..., access_changed: _Optional[_Union[AccessChanged, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("sender", "receiver", "session", "term", "schema", "nonce")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    sender: str
    receiver: str
    session: int
    term: int
    schema: str
    nonce: bytes
    def __init__(self, sender: _Optional[str] = ..., receiver: _Optional[str] = ..., session: _Optional[int] = ..., term: _Optional[int] = ..., schema: _Optional[str] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("nonce", "proof")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    proof: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    def __init__(self, proof: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Peer(_message.Message):
    __slots__ = ("id", "address", "binding")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    id: str
    address: str
    binding: bytes
    def __init__(self, id: _Optional[str] = ..., address: _Optional[str] = ..., binding: _Optional[bytes] = ...) -> None: ...

class PeersChanged(_message.Message):
    __slots__ = ("peers", "gateways")
    PEERS_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    gateways: _containers.RepeatedCompositeFieldContainer[Peer]
    def __init__(self, peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., gateways: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("head", "term", "facts")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    head: str
    term: int
    facts: bytes
    def __init__(self, head: _Optional[str] = ..., term: _Optional[int] = ..., facts: _Optional[bytes] = ...) -> None: ...

class Joining(_message.Message):
    __slots__ = ("address",)
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    def __init__(self, address: _Optional[str] = ...) -> None: ...

class Joined(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Leaving(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterShown(_message.Message):
    __slots__ = ("view",)
    VIEW_FIELD_NUMBER: _ClassVar[int]
    view: bytes
    def __init__(self, view: _Optional[bytes] = ...) -> None: ...

class AccessChanged(_message.Message):
    __slots__ = ("access",)
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    access: bytes
    def __init__(self, access: _Optional[bytes] = ...) -> None: ...

class NodeReport(_message.Message):
    __slots__ = ("num_fetches", "num_failed_fetches", "num_bytes", "links", "counts", "moved")
    NUM_FETCHES_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_FETCHES_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    num_fetches: int
    num_failed_fetches: int
    num_bytes: int
    links: _containers.RepeatedCompositeFieldContainer[KVLink]
    counts: _containers.RepeatedCompositeFieldContainer[Count]
    moved: _containers.RepeatedCompositeFieldContainer[KVMoved]
    def __init__(self, num_fetches: _Optional[int] = ..., num_failed_fetches: _Optional[int] = ..., num_bytes: _Optional[int] = ..., links: _Optional[_Iterable[_Union[KVLink, _Mapping]]] = ..., counts: _Optional[_Iterable[_Union[Count, _Mapping]]] = ..., moved: _Optional[_Iterable[_Union[KVMoved, _Mapping]]] = ...) -> None: ...

class KVMoved(_message.Message):
    __slots__ = ("transport", "num_fetches", "num_bytes")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    NUM_FETCHES_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    transport: str
    num_fetches: int
    num_bytes: int
    def __init__(self, transport: _Optional[str] = ..., num_fetches: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class KVLink(_message.Message):
    __slots__ = ("peer", "transport", "why")
    PEER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    peer: str
    transport: str
    why: str
    def __init__(self, peer: _Optional[str] = ..., transport: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class Count(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: int
    def __init__(self, name: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("progress", "started", "failed")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    started: NodeStarted
    failed: NodeFailed
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., started: _Optional[_Union[NodeStarted, _Mapping]] = ..., failed: _Optional[_Union[NodeFailed, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "share")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    phase: str
    share: float
    def __init__(self, phase: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class NodeStarted(_message.Message):
    __slots__ = ("pid", "address", "binding", "joined")
    PID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    pid: int
    address: str
    binding: bytes
    joined: bytes
    def __init__(self, pid: _Optional[int] = ..., address: _Optional[str] = ..., binding: _Optional[bytes] = ..., joined: _Optional[bytes] = ...) -> None: ...

class NodeFailed(_message.Message):
    __slots__ = ("why", "problems")
    WHY_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    why: str
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, why: _Optional[str] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...
