# Everything runs inside .venv, which is made from pyproject.toml and constraints.txt and remade when either changes.
PYTHON ?= python3.11
BIN := .venv/bin
RUNS := runs

.PHONY: test pytest lint coverage demo docs clean

# Both at once: processes of the tests wait for each other now and then.
test: .venv/ready
	$(MAKE) --no-print-directory --jobs=2 lint pytest

pytest: .venv/ready
	$(BIN)/python -m pytest -n auto --dist loadfile

# The same tests with the lines that they reach counted, which takes half as long again.
coverage: .venv/ready
	$(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term --cov-fail-under=95

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p freeprune

demo: .venv/ready
	rm -rf $(RUNS)/demo $(RUNS)/digits-cnn.safetensors
	$(BIN)/freeprune train digits:cnn --data digits --epochs 15 --seed 0 --out $(RUNS)/digits-cnn.safetensors
	$(BIN)/freeprune prune digits:cnn --weights $(RUNS)/digits-cnn.safetensors --data digits \
	    --granularity channel --target latency=55% --strategy evolution --trials 300 --finetune-epochs 10 --seed 0 --out $(RUNS)/demo

# The pages as a site, with the API reference. A link that leads nowhere is an error.
docs: .venv/ready
	$(BIN)/python -m sphinx -b html -W --keep-going -n -q -c docs . .build/docs
	@echo open .build/docs/index.html

# mypy finds the package through .venv/src, since the repository root itself is the package.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	mkdir -p .venv/src && ln -sfn ../.. .venv/src/freeprune
	touch $@

clean:
	rm -rf .venv .build build *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache
