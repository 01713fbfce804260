"""The table of hostile files, of all formats (RELIABILITY R13)."""

from tests.weights import malicious_archives, malicious_arrays, malicious_hdf5, malicious_torch
from tests.weights.attack import Attack

MALICIOUS: dict[str, Attack] = {
    **malicious_torch.MALICIOUS,
    **malicious_hdf5.MALICIOUS,
    **malicious_arrays.MALICIOUS,
    **malicious_archives.MALICIOUS,
}
