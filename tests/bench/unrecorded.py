"""A validator that neither makes, counts nor keeps records: what recording is compared with."""

import sys
from typing import Any

from waypost.cli import main
from waypost.validator import pipeline
from waypost.validator.records.recorder import Recorder
from waypost.validator.startup import supervisor, worker


def _nothing(*_: Any) -> Any:  # noqa: ANN401
    return None


if __name__ == "__main__" and sys.argv[1] == "validator":
    supervisor.WORKER = (sys.executable, "-m", "bench.unrecorded")
    main()
elif __name__ == "__main__":
    setattr(Recorder, "note", _nothing)  # noqa: B010 - two patches, told alike
    setattr(pipeline, "record_of", _nothing)  # noqa: B010
    worker.main()
