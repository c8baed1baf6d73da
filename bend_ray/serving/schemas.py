"""What responses hold, for the OpenAPI document: they are written by hand, for speed; tests compare."""

from pydantic import BaseModel, ConfigDict, Field


class Said(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Error(Said):
    error: str = Field(examples=["images: has shape (1, 3, 3); expected (N, 1, 8, 8)"])


class Row(Said):
    label: int = Field(examples=[3])
    class_: str = Field(alias="class", examples=["3"])
    probability: float = Field(examples=[0.97])
    probabilities: list[float] = Field(examples=[[0.01, 0.01, 0.01, 0.97]])
    votes: list[int] = Field(examples=[[0, 1, 0, 63]])
    entropy: float = Field(examples=[0.17])
    mutual_information: float = Field(examples=[0.03])
    disagreement: float = Field(examples=[0.016])
    member_labels: list[int] = Field(default=[], examples=[[3, 3, 1]])


class Answer(Said):
    model: str
    version: str
    strategy: str = Field(examples=["abend"])
    members: int = Field(examples=[64])
    class_names: list[str]
    predictions: list[Row]


class Accuracy(Said):
    """On the test split; empty where no report is of this ensemble."""

    abend: float = 0.0
    sbend: float = 0.0


class Image(Said):
    channels: int
    size: int


class Limits(Said):
    max_rows: int
    max_body: float
    timeout: float
    queue: int


class Ensemble(Said):
    model: str
    run: str
    members: int
    classes: int
    class_names: list[str]
    image: Image
    subset_size: int
    accuracy: Accuracy
    hash: str
    digest: str
    inputs: dict[str, str]
    made_by: str
    strategies: list[str]
    plan: str
    limits: Limits


class Server(Said):
    name: str
    version: str
    extensions: list[str]


class Live(Said):
    live: bool


class Ready(Said):
    name: str = ""
    ready: bool


class TensorFacts(Said):
    name: str
    datatype: str
    shape: list[int]


class Metadata(Said):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorFacts]
    outputs: list[TensorFacts]


class Output(TensorFacts):
    data: list[float] = []
    parameters: dict[str, int] = {}


class Inferred(Said):
    model_name: str
    model_version: str
    id: str = ""
    parameters: dict[str, str]
    outputs: list[Output]
