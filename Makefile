# Everything sets itself up: `make demo` and `make test` need Python >= 3.11, pip and make, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# CPU wheels of torch: the default wheels for Linux bring several gigabytes of CUDA. Set TORCH_INDEX= for those.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo digits test test-slow lint docs bench-solvers bench-likelihood bench-training bench-flows bench-backbones clean

demo: $(VENV)/.plot
	$(BIN)/python -m scoresde demo

digits: $(VENV)/.test
	$(BIN)/python examples/digits.py

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench-solvers: .venv-bench/.peers
	.venv-bench/bin/python benchmarks/solvers.py all $(BENCH)

bench-training: .venv-bench/.peers
	.venv-bench/bin/python benchmarks/training.py all $(BENCH)

bench-likelihood: .venv-bench/.peers
	.venv-bench/bin/python benchmarks/likelihood.py all $(BENCH)

bench-flows: .venv-bench/.peers
	for what in coupling reflow onestep cost; do .venv-bench/bin/python benchmarks/flows.py $$what $(BENCH) || exit 1; done

bench-backbones: .venv-bench/.peers
	.venv-bench/bin/python benchmarks/backbones.py $(BENCH)

# The peers have demands of their own; k-diffusion's would break all others, and only one file of it is read.
.venv-bench/.peers: benchmarks/requirements.txt constraints.txt
	$(MAKE) VENV=.venv-bench .venv-bench/.torch
	.venv-bench/bin/pip install -q -c constraints.txt -r benchmarks/requirements.txt -e .
	.venv-bench/bin/pip install -q --no-deps k-diffusion==0.1.1 score_models==0.5.11 torchcfm==1.0.7
	@touch $@

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	@touch $@

# One set-up per extra: the demo needs little, the tests more.
$(VENV)/.%: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-bench docs/_build build *.egg-info
