# Two commands do everything on a machine with Python 3.11+, pip and make:
#   make demo    the main job on real heads, to build/demo/report.html
#   make test    linters, type checker and tests
# and one builds the documentation site:
#   make docs    build/site/index.html; a link that leads nowhere is an error
PYTHON ?= python3
VENV := .venv
DEMO := build/demo
LARMOR := $(VENV)/bin/larmor

.PHONY: install demo test azurite docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

demo: install
	$(LARMOR) store start
	$(LARMOR) fetch heads --to $(DEMO)/heads
	$(LARMOR) convert $(DEMO)/heads --splits $(DEMO)/heads/splits.yaml --to s3://larmor/heads --if-missing
	$(LARMOR) inspect s3://larmor/heads --to $(DEMO)/contact-sheet.png
	$(LARMOR) sweep laptop
	$(LARMOR) train laptop --best-of s3://larmor/sweeps/laptop
	$(LARMOR) train laptop name=gan_resnet50 system=gan_resnet50 generator.width=8
	$(LARMOR) pull s3://larmor/runs/laptop --to $(DEMO)/model --overwrite
	$(LARMOR) pull s3://larmor/runs/gan_resnet50 --to $(DEMO)/gan_resnet50 --overwrite
	$(LARMOR) reconstruct $(DEMO)/model $(DEMO)/heads/petdeface01.nii.gz --to $(DEMO)/reconstruction
	$(LARMOR) evaluate $(DEMO)/gan_resnet50 $(DEMO)/model s3://larmor/heads --every 12 \
		--method wavelet --method total_variation --method alternating --to $(DEMO)/evaluation
	$(LARMOR) report s3://larmor/runs/laptop s3://larmor/sweeps/laptop \
		--evaluation $(DEMO)/evaluation --to $(DEMO)/report.html
	@echo
	@echo "Figures: $(DEMO)/contact-sheet.png (the data), $(DEMO)/reconstruction/petdeface01-reconstruction.png (the"
	@echo "whole head), $(DEMO)/evaluation/comparison-*.png (target, every row of the table, errors)."
	@echo "Report:  $(DEMO)/report.html"

test: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

azurite:  # Azure's emulator, for the tests of az:// (needs npm)
	npm install --prefix build/azurite --no-audit --no-fund azurite@3.35.0

docs: install
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(DEMO) build $(VENV)
