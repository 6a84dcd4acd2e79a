# Every target works on a machine with Python 3.11 or newer and bash.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c 1 2>/dev/null && echo python3.12 || echo python3)
VENV := .venv
RUN := $(VENV)/bin/python
# One process per core; tests of a file share their fixtures.
PARALLEL := -n auto --dist loadfile
# Most of the time of the tests is compilation. Slow tests, such as whole runs, are compiled with XLA's default options.
QUICKLY := JAX_DISABLE_MOST_OPTIMIZATIONS=1
READY := $(VENV)/.ready
# Not every sh reads $'\n' as a newline; bash does.
SHELL := bash

.DEFAULT_GOAL := help
.PHONY: help train train-llm test test-all test-transformers test-integrations test-lowest test-newest bench notebooks docs package lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dps_jax needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[dev]'
	@touch $@

train: $(READY)  ## the main job: train a small model on prompts chosen by prediction; writes runs/train/
	$(RUN) experiments/train.py

SMOLLM2 := runs/smollm2-135m-instruct
SUMS := runs/questions/sums
SUM_OPTIONS := --prompts.test-data $(SUMS)/test.jsonl --prompts.num-test 64 --prompts.no-chat --prompts.num-buckets 1 \
	--rollout.stops $$'\n' --rollout.completion-length 6 --rollout.batch-size 8 --rollout.group-size 8 \
	--learner.learning-rate 2e-5 --learner.schedule linear --learner.decay-rounds 40 --selector.method binomial_hmm \
	--num-rounds 40 --eval-every 10 --checkpoint-every 20

train-llm: $(READY)  ## train SmolLM2-135M on sums chosen by prediction (downloads 90 MB); writes runs/train-llm/
	$(RUN) experiments/get_smollm2.py --out $(SMOLLM2)
	$(RUN) experiments/make_questions.py --task sums --style equation --examples 3 --out $(SUMS)
	$(RUN) experiments/train_llm.py $(SMOLLM2) $(SUMS)/train.jsonl --name train-llm $(SUM_OPTIONS)

test: $(READY)  ## run the tests that are not slow
	$(QUICKLY) $(RUN) -m pytest $(PARALLEL) -m 'not slow and not transformers and not integrations'

test-all: test  ## run the tests, and then the slow ones
	$(RUN) -m pytest $(PARALLEL) -m slow

test-transformers: $(READY)  ## compare models and tokenizers with transformers (installs it, and torch)
	$(RUN) -m pip install --quiet --editable '.[dev,transformers]'
	$(RUN) -m pytest -m transformers

# For each, tests/integrations/requirements/NAME.txt pins the versions for tests/integrations/test_NAME.py.
FRAMEWORKS := trl tunix slime skyrl verl

test-integrations: $(FRAMEWORKS:%=test-integrations-%)  ## train with each of the other trainers, in separate environments .venv-NAME
	.ci/integrations_state > tests/integrations/passed.sha256

.SECONDARY: $(FRAMEWORKS:%=.venv-%/.ready)
.venv-%/.ready: tests/integrations/requirements/%.txt pyproject.toml
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --editable . --requirement $<
	@touch $@

test-integrations-%: .venv-%/.ready
	$(QUICKLY) .venv-$*/bin/python -m pytest -m integrations tests/integrations/test_$*.py

# With the lowest releases that pyproject.toml admits, and with the newest that pip finds for this Python.
test-lowest: .venv-lowest/.versions  ## run the tests with the lowest versions of JAX and flax; updates a table in docs/index.md
test-newest: .venv-newest/.versions  ## run the tests with the newest versions; updates the same table
test-lowest test-newest: test-%:
	mkdir -p runs
	$(QUICKLY) .venv-$*/bin/python -m pytest $(PARALLEL) -m 'not slow and not transformers and not integrations' \
		--junitxml runs/versions-$*.xml
	.venv-$*/bin/python .ci/record_versions.py runs/versions-$*.xml

.SECONDARY: .venv-lowest/.versions .venv-newest/.versions
.venv-%/.versions: tests/lowest.txt pyproject.toml
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade --editable '.[dev]' $(if $(filter lowest,$*),--constraint $<)
	@touch $@

bench: $(READY)  ## compare the speed of the filter, the training round and priors with other code; writes runs/bench_*/
	$(RUN) experiments/bench_filter.py
	$(RUN) experiments/bench_loop.py
	$(RUN) experiments/bench_priors.py

notebooks: $(READY)  ## execute the notebooks in place
	$(RUN) -m pip install --quiet --editable '.[notebooks]'
	$(RUN) experiments/run_notebooks.py

docs: $(READY)  ## build the documentation as a site, runs/site/index.html; a broken link is an error
	$(RUN) -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet
	$(RUN) .ci/check_site.py runs/site
	@echo "open runs/site/index.html, or: $(RUN) -m http.server --directory runs/site"

package: $(READY)  ## build sdist and wheel into runs/package/, and test the wheel in an empty environment
	rm -rf runs/package
	$(RUN) -m build --outdir runs/package
	$(RUN) .ci/check_package.py runs/package

lint: $(READY)  ## check format, style and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/basedpyright

format: $(READY)  ## format the code and apply safe fixes
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:  ## remove the environments and caches
	rm -rf $(VENV) .venv-* .pytest_cache .ruff_cache .hypothesis *.egg-info
