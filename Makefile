VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
# One stamp a set of requirements: a changed list makes the environment stale, a shared one (VENV=...) is not rebuilt.
STAMP = $(VENV)/.made-from-$(shell cat requirements*.txt | sha256sum | cut -c1-16)

.PHONY: demo demo-page test test-browser lint

demo: $(STAMP)
	$(RUN) main.py --flagfile config/DIGITS.txt --train
	$(RUN) main.py --flagfile config/DIGITS.txt --sample
	$(RUN) main.py --flagfile config/DIGITS.txt --eval --num_images=500
	@echo "Look at logs/DIGITS/samples/grid.png"

demo-page: $(STAMP)-demo
	$(RUN) -m streamlit run demo.py

test: $(STAMP)
	$(RUN) -m pytest

test-browser: $(STAMP)-browser
	$(RUN) -m pytest -m browser
	@echo "Look at logs/screenshots"

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(STAMP): $(wildcard requirements*.txt)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements-test.txt
	touch $@

$(STAMP)-%: requirements-%.txt $(STAMP)
	$(RUN) -m pip install --quiet -r $<
	touch $@
