VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
PICTURES = logs/pictures
EDIT = $(RUN) main.py --logdir=logs/DIGITS --variants=4 --jump=4 --order=2 --sample_steps=20 --edit
# Write digits of the test split, and the same at half their size, as --images of the pictures of --edit.
SOURCES = import numpy as np; from dataset import load, loader; \
    x = loader.decode_all(load('digits', '', 8, 'test'))[0][:8].permute(0, 2, 3, 1); \
    np.savez('$(PICTURES)/8x8', arr_0=x); \
    np.savez('$(PICTURES)/4x4', arr_0=x.float().reshape(8, 4, 2, 4, 2, 1).mean((2, 4)).round().byte())
# One stamp for each set of requirements: a changed list makes the environment stale; a shared VENV is not rebuilt.
STAMP = $(VENV)/.made-from-$(shell cat requirements*.txt | cksum | tr -d ' ')

# What runs a network in the browser, and the digest that the npm registry gives of it.
ORT = onnxruntime-web-1.30.0
ORT_SHA512 = ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61
VENDOR = docs/try/vendor
# The model of docs/try: the flagfile in config/ that trains it, and the port of the page.
MODEL ?= DIGITS
PORT ?= 8000

.PHONY: venv demo demo-page try free-port try-files pictures page-pictures test test-avx2 test-browser flags lint

venv: $(STAMP)

demo: $(STAMP)
	$(RUN) main.py --flagfile config/DIGITS.txt --train
	$(RUN) main.py --flagfile config/DIGITS.txt --sample --order=2 --sample_steps=20
	$(RUN) main.py --flagfile config/DIGITS.txt --eval --order=2 --sample_steps=20 --num_images=500
	@echo "Look at logs/DIGITS/samples/grid.png"

demo-page: $(STAMP)-demo
	$(RUN) -m streamlit run demo.py

# Serve a page on which the browser itself draws, with the model of the demo.
try: free-port try-files
	@echo "Open http://127.0.0.1:$(PORT)"
	$(RUN) -m http.server $(PORT) --bind 127.0.0.1 --directory docs/try

# Say it now if the page cannot be served, not after the training.
free-port: $(STAMP)
	@$(RUN) -c "import socket; socket.create_server(('127.0.0.1', $(PORT)))" 2>/dev/null || \
	    { echo "Port $(PORT) is taken, or is no port: take another, as in make try PORT=9000" >&2; exit 1; }

# Make what that page needs. The training does nothing if it was done before.
try-files: $(STAMP)-onnx $(VENDOR)/$(ORT)
	$(RUN) main.py --flagfile config/$(MODEL).txt --train
	rm -rf docs/try/model
	$(RUN) main.py --export=onnx --logdir=logs/$(MODEL) --order=2 --sample_steps=20 --out=docs/try/model

$(VENDOR)/$(ORT):
	rm -rf $(VENDOR)
	mkdir -p $(VENDOR)
	curl --fail --silent --show-error --location --output $(VENDOR)/ort.tgz https://registry.npmjs.org/onnxruntime-web/-/$(ORT).tgz
	$(PYTHON) -c "import hashlib, sys; found = hashlib.sha512(open('$(VENDOR)/ort.tgz', 'rb').read()).hexdigest(); \
	    sys.exit(None if found == '$(ORT_SHA512)' else '$(ORT) is not what the registry says')"
	tar -xzf $(VENDOR)/ort.tgz -C $(VENDOR) --strip-components=2 \
	    package/dist/ort.wasm.bundle.min.mjs package/dist/ort-wasm-simd-threaded.wasm
	rm $(VENDOR)/ort.tgz
	touch $@

# Draw the pictures of docs/ that need no download, those of the page with Chromium. Takes about ten minutes.
pictures: $(STAMP)
	$(RUN) main.py --flagfile config/DIGITS.txt --train --figure=progressive --out=$(PICTURES)/digits
	$(RUN) main.py --flagfile config/DIGITS.txt --sample --order=2 --sample_steps=20 --out=$(PICTURES)/samples
	$(RUN) main.py --flagfile config/DIGITS.txt --figure=interpolate --between=codes --order=2 --eta=0 --sample_steps=50 --out=$(PICTURES)/codes
	$(RUN) main.py --flagfile config/DIGITS.txt --figure=interpolate --figure_t=40 --out=$(PICTURES)/digits
	$(RUN) main.py --flagfile config/DIGITS.txt --loss=hybrid --var_type=learned_range --logdir=$(PICTURES)/hybrid --train --nll
	$(RUN) main.py --flagfile config/DIGITS_CFG.txt --train --sample --guidance=2 --out=$(PICTURES)/guided
	$(RUN) main.py --flagfile config/S_CURVE.txt --train --sample --out=$(PICTURES)/s_curve
	$(RUN) -c "$(SOURCES)"
	$(EDIT)=inpaint --mask=half --images=$(PICTURES)/8x8.npz --out=$(PICTURES)/edit_inpaint
	$(EDIT)=upscale --factor=2 --images=$(PICTURES)/4x4.npz --out=$(PICTURES)/edit_upscale
	$(EDIT)=vary --strength=0.25 --images=$(PICTURES)/8x8.npz --out=$(PICTURES)/edit_vary
	for edit in inpaint upscale vary; do cp $(PICTURES)/edit_$$edit/grid.png docs/edit_$$edit.png; done
	cp $(PICTURES)/samples/grid.png docs/digits.png
	cp $(PICTURES)/codes/interpolate.png docs/codes.png
	cp $(PICTURES)/guided/grid.png docs/digits_guided.png
	cp $(PICTURES)/s_curve/figure.png docs/s_curve.png
	cp $(PICTURES)/digits/progressive.png $(PICTURES)/digits/interpolate.png $(PICTURES)/hybrid/nll.png docs
	$(MAKE) page-pictures

# Take the pictures of the pages with the runs that pictures has trained.
page-pictures: $(STAMP)-demo $(STAMP)-browser
	$(MAKE) try-files MODEL=DIGITS_CFG
	$(RUN) tests/page_pictures.py logs docs

# Run one process per core: each test uses one thread.
test: $(STAMP)
	$(RUN) -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal

# Run the tests that depend on CPU kernels as on a CPU without AVX-512 and bf16.
test-avx2: $(STAMP)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(RUN) -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal \
	    tests/test_model.py tests/test_diffusion.py tests/test_sample.py tests/test_score*.py tests/test_speed.py -k "not compiled"

# Run the tests of the pages, those without a browser too: they need more than make test has.
test-browser: $(STAMP)-demo $(STAMP)-browser $(VENDOR)/$(ORT)
	$(RUN) -m pytest -m "" --numprocesses=auto --maxprocesses=4 --dist=worksteal \
	    tests/test_page.py tests/test_demo.py tests/test_try.py
	@echo "Look at logs/screenshots"

flags: $(STAMP)
	$(RUN) -c "import main; print(main.commandline.flags_page(main.own_flags()), end='')" > docs/flags.tmp
	mv docs/flags.tmp docs/flags.md

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(STAMP): $(wildcard requirements*.txt)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt -r requirements-test.txt
	touch $@

$(STAMP)-%: requirements-%.txt $(STAMP)
	$(RUN) -m pip install --quiet -r $<
	touch $@
