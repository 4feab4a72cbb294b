"""Start a run's vLLM server: python launchers/vllm_server.py --config FILE.yaml"""

from capo_ds.commands.vllm_server import main

if __name__ == "__main__":
    main()
