"""What responses hold, for the OpenAPI document: they are written by hand, for speed; tests compare."""

from pydantic import BaseModel, ConfigDict, Field


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Error(Schema):
    error: str = Field(examples=["images: has shape (1, 3, 3); expected (N, 1, 8, 8)"])


class Row(Schema):
    label: int = Field(examples=[3])
    class_: str = Field(alias="class", examples=["3"])
    probability: float = Field(examples=[0.97])
    probabilities: list[float] = Field(examples=[[0.01, 0.01, 0.01, 0.97]])
    votes: list[int] = Field(examples=[[0, 1, 0, 63]])
    entropy: float = Field(examples=[0.17])
    mutual_information: float = Field(examples=[0.03])
    disagreement: float = Field(examples=[0.016])
    distance: float = Field(
        default=0.0, examples=[0.021], description="To the training rows; left out where the ensemble measures none"
    )
    member_labels: list[int] = Field(default=[], examples=[[3, 3, 1]])


class Answer(Schema):
    model: str
    version: str
    strategy: str = Field(examples=["abend"])
    members: int = Field(examples=[64])
    class_names: list[str]
    predictions: list[Row]


class Accuracy(Schema):
    """On the test split; empty where no report is of this ensemble."""

    abend: float = 0.0
    sbend: float = 0.0


class Image(Schema):
    channels: int
    size: int


class Limits(Schema):
    max_rows: int
    max_body: float
    timeout: float
    queue: int


class Temperature(Schema):
    """Of the mean probability; votes do not depend on it."""

    kind: str = Field(examples=["pool"])
    value: float = Field(examples=[1.04])
    low: float = Field(examples=[1.01])
    high: float = Field(examples=[1.08])
    why: str = Field(default="", description="Why one was sought and left out")


class Distance(Schema):
    """How far an input is from the training rows, in the features that members share; empty where the ensemble measures
    none."""

    measure: str = Field(default="", examples=["cosine"])
    features: int = Field(default=0, examples=[512])
    pooled: bool = Field(default=False, description="Whether features are averages over places or tokens")
    rows: int = Field(default=0, description="Training rows that it was made from")
    bytes: int = 0
    median: float = Field(default=0.0, description="Of validation rows")
    q95: float = Field(default=0.0, description="95 % of validation rows are nearer")
    q99: float = Field(default=0.0, description="99 % of validation rows are nearer")


class Ensemble(Schema):
    model: str
    run: str
    members: int
    classes: int
    class_names: list[str]
    image: Image
    subset_size: int
    trunks: int
    accuracy: Accuracy
    hash: str
    digest: str
    inputs: dict[str, str]
    made_by: str
    strategies: list[str]
    plan: str
    temperature: Temperature
    distance: Distance
    limits: Limits


class Server(Schema):
    name: str
    version: str
    extensions: list[str]


class Live(Schema):
    live: bool


class Ready(Schema):
    name: str = ""
    ready: bool


class TensorFacts(Schema):
    name: str
    datatype: str
    shape: list[int]


class Metadata(Schema):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorFacts]
    outputs: list[TensorFacts]


class Output(TensorFacts):
    data: list[float] = []
    parameters: dict[str, int] = {}


class Inferred(Schema):
    model_name: str
    model_version: str
    id: str = ""
    parameters: dict[str, str]
    outputs: list[Output]
