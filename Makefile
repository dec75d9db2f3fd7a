PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without a GPU the CPU build of torch is enough and much smaller; with one, the default build is taken.
TORCH := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo "torch>=2.4" || echo "torch==2.13.0")

# What `make demo` says. It reaches the shell by the environment, so that quotes in it are no syntax.
TEXT ?=
export TEXT
# Hours of each speaker that `make voice` generates, and where its corpus and training go.
HOURS ?= 4
RUN ?= runs/demo

.PHONY: demo test lint voice clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The demo needs less than the tests, and so is ready sooner.
$(VENV)/.base: $(BIN)/python setup.py
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.installed: $(VENV)/.base
	$(BIN)/pip install --quiet -e ".[dev,corpus,eval,app,onnx,shards]"
	touch $@

demo: $(VENV)/.base
	$(BIN)/python scripts/demo.py $(if $(TEXT),"$$TEXT")

# From nothing to the bundled voice: corpus, training (hours), float16 weights, evaluation. Goes on where it was stopped.
voice: $(VENV)/.installed
	$(BIN)/python scripts/make_corpus.py --hours $(HOURS) --output corpus
	$(BIN)/flowtron train -c configs/demo.json -p train_config.output_directory=$(RUN)
	$(BIN)/python scripts/release_voice.py $(RUN) demo
	$(BIN)/flowtron evaluate demo --sentences corpus/test.txt --limit 50 --pitch --output $(RUN)/evaluation.json
	$(BIN)/python scripts/release_voice.py $(RUN) demo --evaluation $(RUN)/evaluation.json

test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info demo
