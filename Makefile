# Everything sets itself up: `make demo` and `make test` need Python >= 3.11, pip and make, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# CPU wheels of torch: the default wheels for Linux bring several gigabytes of CUDA. Set TORCH_INDEX= for those.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# What each end of the allowed versions runs: what touches the ways of torch, numpy, scipy, safetensors, pandas most.
CORE := tests/test_storage.py tests/test_saved_models.py tests/test_checkpoint.py tests/test_pairs.py tests/test_data.py \
        tests/test_coupling.py tests/test_training.py tests/test_sde.py tests/test_dequantize.py tests/test_files.py \
        tests/test_external.py tests/test_tables.py tests/test_robustness.py tests/test_conditions.py tests/test_cli.py \
        tests/test_public.py tests/test_accelerate.py tests/test_logs.py tests/test_export.py tests/test_hub.py

.PHONY: demo digits test test-slow test-oldest test-newest lint docs pictures bench-solvers bench-likelihood bench-training bench-flows bench-backbones bench-tables bench-posteriors gpu gpu-here clean

demo: $(VENV)/.plot
	$(BIN)/python -m scoresde demo

digits: $(VENV)/.test
	$(BIN)/python examples/digits.py

# Bytecode is kept, whatever the environment says: or each process of the tests compiles all there is.
test: export PYTHONDONTWRITEBYTECODE =
# Two processes share the cores; threads of torch and BLAS beside them only wait for one another.
test: export OMP_NUM_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

test-oldest: .venv-oldest/.core
	.venv-oldest/bin/python -m pytest -n 2 -p no:cacheprovider $(CORE)

test-newest: .venv-newest/.core
	.venv-newest/bin/python -m pytest -n 2 -p no:cacheprovider $(CORE)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -E -W --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/check_site.py docs/_build/html

# Pictures that take minutes; `python docs/pictures.py NAME` draws any of those in docs/gallery.md.
pictures: $(VENV)/.test
	$(BIN)/python docs/pictures.py

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

bench-tables: .venv-bench/.peers
	.venv-bench/bin/python benchmarks/tables.py all $(BENCH)

bench-posteriors: .venv-bench/.peers
	.venv-bench/bin/python benchmarks/posteriors.py $(BENCH)

# A GPU takes the wheels of torch with CUDA, in an environment of their own. Without one, the usual environment shows
# that the script works. CIFAR10=FOLDER adds the recipe.
gpu:
	$(MAKE) $(if $(shell command -v nvidia-smi),VENV=.venv-gpu TORCH_INDEX=) gpu-here

gpu-here: $(VENV)/.test
	$(BIN)/python benchmarks/gpu.py $(if $(CIFAR10),--cifar10 $(CIFAR10)) $(BENCH)

# The peers have demands of their own; k-diffusion's would break all others, and only one file of it is read.
.venv-bench/.peers: benchmarks/requirements.txt constraints.txt
	$(MAKE) VENV=.venv-bench .venv-bench/.torch
	.venv-bench/bin/pip install -q -c constraints.txt -r benchmarks/requirements.txt -e .
	.venv-bench/bin/pip install -q --no-deps k-diffusion==0.1.1 score_models==0.5.11 torchcfm==1.0.7 sbibm==1.1.0
	@touch $@

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	@touch $@

# One set-up per extra: the demo needs little, the tests more.
$(VENV)/.%: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e '.[$*]'
	@touch $@

# Environments of their own for both ends; the newest takes whatever the index has now, so it is made anew each time.
.venv-oldest/.core: constraints-oldest.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/pip install -q --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$(grep '^torch==' $<)
	.venv-oldest/bin/pip install -q -c $< -e '.[plot,data,train,ot,sklearn,hub]' pytest pytest-xdist pandas
	@touch $@

.PHONY: .venv-newest/.core
.venv-newest/.core:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/pip install -q --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	.venv-newest/bin/pip install -q -e '.[plot,data,train,ot,sklearn,hub]' pytest pytest-xdist pandas

clean:
	rm -rf $(VENV) .venv-bench .venv-oldest .venv-newest .venv-gpu docs/_build build *.egg-info
