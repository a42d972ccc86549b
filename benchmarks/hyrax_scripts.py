"""What Hyrax offers in Python only, as commands in Hyrax's own environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def search(config: str, database: str, object_id: str, k: str) -> None:
    """Print the k nearest objects of one, as a user's shortest script would."""
    from hyrax import Hyrax

    connection = Hyrax(config_file=config).database_connection(database_dir=database)
    print(json.dumps(connection.search_by_id(object_id, k=int(k))))


def answers(config: str, database: str, queries: str, output: str, k: str) -> None:
    """Write the ids of the k nearest objects of each query vector of a .npy file as JSON."""
    import numpy as np

    from hyrax import Hyrax

    connection = Hyrax(config_file=config).database_connection(database_dir=database)
    found = connection.search_by_vector(list(np.load(queries)), k=int(k))
    Path(output).write_text(json.dumps([found[i] for i in range(len(found))]))


def export(results: str, output: str) -> None:
    """Write the ids and vectors of an inference, or the coordinates of a map, as .npz."""
    import lance
    import numpy as np

    rows = lance.dataset(str(Path(results) / "lance_db" / "results.lance")).to_table()
    vectors = np.array(rows["data"].to_pylist(), np.float32)
    np.savez(output, ids=np.array(rows["object_id"].to_pylist()), vectors=vectors)


if __name__ == "__main__":
    {"search": search, "answers": answers, "export": export}[sys.argv[1]](*sys.argv[2:])
