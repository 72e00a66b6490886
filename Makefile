# make demo       train a small quantizer and show its results (ARGS="--help")
# make test       lint and run the tests
# make test-slow  run the end-to-end tests
# make speech     retrain the bundled codec (Debian or Ubuntu; an hour)
# make units      retrain the bundled units (Debian or Ubuntu; an hour)
# make vocoder    retrain the bundled vocoder (Debian or Ubuntu)
# make mini       retrain the test model (minutes)
# make docs       build the documentation site in site/
# make install    set up the environment only
#
# Variables: PYTHON=python3.12 for another interpreter, VENV=path for another
# environment, JOBS=8 for eight test processes of about 1.5 GB each.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PRETRAINED := speechbrain_vq/pretrained
MINI := tests/mini

# Stamp files skip the installation of extras that are already installed. DEV
# includes DEMO.
DEMO := $(VENV)/.speechbrain-vq-demo
DEV := $(VENV)/.speechbrain-vq-dev
$(DEMO): EXTRAS := demo
$(DEV): EXTRAS := demo,dev,docs,eval,report

.PHONY: demo mini speech units vocoder packages test test-slow lint docs install clean

demo: $(DEMO)
	@$(BIN)/speechbrain-vq demo $(ARGS)

# $(DEV) rather than $(DEMO), because plots in the model card need matplotlib.
mini: $(DEV)
	$(BIN)/speechbrain-vq train MiniSpeech/unit-discovery \
		--data_folder=data/minispeech --make_minispeech \
		--output_folder=results/mini --number_of_steps=1600 $(ARGS)
	$(BIN)/speechbrain-vq export results/mini $(MINI)
	@rm $(MINI)/*.png

packages: $(DEV)
	@mkdir -p data/debian
	cd data/debian && apt-get download $$($(abspath $(BIN))/python -m \
		speechbrain_vq.recipes.DebianSpeech.debianspeech_prepare)

TRAIN_DEBIAN = $(BIN)/speechbrain-vq train DebianSpeech/$(RECIPE) \
	--data_folder=data/debian --manifest_folder=data/debianspeech \
	--output_folder=results/$@ --noprogressbar $(ARGS)

# Interrupted runs resume. The example recording is from LibriVox.
speech units: packages
	$(TRAIN_DEBIAN)
	$(BIN)/speechbrain-vq export results/$@ results/$@/$@ \
		--example=$(PRETRAINED)/speech/example.wav
	cp results/$@/$@/* $(PRETRAINED)/$@/

speech: RECIPE := speech-codec
# The bundled units were trained with earlier defaults, which are set here.
units: RECIPE := unit-discovery --vq='{norm: running, entropy_weight: 0.0, \
	estimator: diveq, commitment_weight: 0.0, codebook_weight: 0.0}'

vocoder: RECIPE := vocoder
vocoder: packages
	$(TRAIN_DEBIAN)
	cp results/$@/model/* $(PRETRAINED)/$@/

# Distribute by module: tests in a module share expensive fixtures.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadscope

test: lint
	$(PYTEST) $(ARGS)

test-slow: $(DEV)
	$(PYTEST) -m slow $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict .
	$(BIN)/codespell
	$(BIN)/python .ci/prose.py *.md docs/*.md \
		$$(find recipes -name '*.md')
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(DEV)

$(DEMO) $(DEV): setup.cfg pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) with [$(EXTRAS)] (once, a few minutes, about 6 GB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable ".[$(EXTRAS)]"
	@touch $(DEMO) $@

$(BIN)/python:
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { \
		echo "$(PYTHON) cannot create virtual environments:" \
			"install Python >= 3.10 with venv (Debian: python3-venv)" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
	find speechbrain_vq recipes tests benchmarks -name __pycache__ \
		-prune -exec rm -rf {} + 2>/dev/null || true
