# ari-ha: what a person types. `make demo` needs a Debian machine, root and a package mirror, nothing else.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin
# They compute and wait for nothing: one process per core.
FAST     = $(RUN)/python -m pytest -m "not lab" -n auto --durations 20
# Contract tests have containers of their own and wait for them most of the time; of the lab there is one.
CONTRACT = docker/build && $(RUN)/python -m pytest -m lab tests/contract -n 4
LAB      = docker/lab up && $(RUN)/python -m pytest -m lab tests/integration tests/chaos --durations 40
# Where a package index is signed by the machine's own authority, pip must use the machine's bundle.
export PIP_CERT ?= $(wildcard /etc/ssl/certs/ca-certificates.crt)

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-lab lab-up lab-down lab-restart lab-logs lab-status chaos bench lint build clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

# The environment the commands and tests run in; made again when the list of dependencies changes.
$(VENV)/.made: pyproject.toml
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || docker/bootstrap --python-only
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the project and its test tools into $(VENV)"
	@$(RUN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

demo: ## from a bare machine to a running lab: calls, a killed Asterisk, and what the far ends measured
	@docker/bootstrap; status=$$?; \
	if [ $$status -eq 3 ]; then exec $(MAKE) --no-print-directory demo-simulated; \
	elif [ $$status -ne 0 ]; then exit $$status; fi; \
	$(MAKE) --no-print-directory demo-lab

.PHONY: demo-lab demo-simulated
demo-lab: $(VENV)/.made
	@docker/lab up
	@$(RUN)/ari-ha demo

demo-simulated: $(VENV)/.made
	@echo
	@echo "SIMULATED: the same story, told by the simulator. No Asterisk, no network and no audio is involved;"
	@echo "the reason why the real lab cannot run here is printed above."
	@echo
	@$(RUN)/ari-ha simulate --demo

test: $(VENV)/.made ## every test: unit, property, simulation, contract, integration, representative chaos
	@docker/bootstrap; status=$$?; \
	if [ $$status -eq 3 ]; then echo "the tests marked 'lab' are left out: Docker cannot run here"; \
		exec $(MAKE) --no-print-directory test-fast; \
	elif [ $$status -ne 0 ]; then exit $$status; fi; \
	status=0; $(FAST) || status=1; $(CONTRACT) || status=1; $(LAB) || status=1; exit $$status

test-fast: $(VENV)/.made ## the tests that need no Docker
	@$(FAST)

test-lab: $(VENV)/.made ## only the tests that need the lab; it is started when it is not up
	@docker/bootstrap || exit 1; status=0; $(CONTRACT) || status=1; $(LAB) || status=1; exit $$status

lab-up: ## start the lab (DEV=1: with the checkout's code, so that a change needs only `make lab-restart`)
	@docker/bootstrap && docker/lab up

lab-down: ## stop the lab and forget its calls
	@docker/lab down

lab-restart: ## restart ari-ha's own processes in the lab
	@docker/lab restart

lab-logs: ## follow what all hosts of the lab say
	@docker/lab logs -f

lab-status: ## containers and what they use
	@docker/lab status

chaos: $(VENV)/.made ## every fault against every state of a call, anew, into docs/matrix.md: hours (FAULT=, STATE=, CALLS=: one run)
	@docker/bootstrap && mkdir -p reports
ifneq ($(FAULT)$(STATE)$(CALLS),)
	@docker/lab up
	@$(RUN)/ari-ha chaos run $(if $(FAULT),--fault $(FAULT)) $(if $(STATE),--state $(STATE)) $(if $(CALLS),--calls $(CALLS)) --json reports/chaos.json
else
	@status=0; $(RUN)/python tools/chaos-matrix all || status=1; $(RUN)/python tools/chaos-matrix write || status=1; exit $$status
endif

bench: $(VENV)/.made ## measure, and write a report with machine and versions
	@docker/bootstrap && docker/lab up && mkdir -p reports
	@$(RUN)/ari-ha bench --json reports/bench.json
	@$(RUN)/python -m tests.bench.bench_sip | tee reports/bench-sip.json
	@$(RUN)/python -m tests.bench.bench_edge | tee reports/bench-edge.json
	@$(RUN)/python -m tests.bench.bench_b2bua | tee reports/bench-b2bua.json

lint: $(VENV)/.made ## ruff, and the rules about who may import whom
	@$(RUN)/ruff check .
	@$(RUN)/lint-imports

build: ## the lab's images
	@docker/bootstrap && docker/build

clean: lab-down ## the lab, its images and its credentials; Docker itself stays
	@docker images --format '{{.Repository}}:{{.Tag}}' | grep '^ari-ha/' | xargs -r docker rmi -f >/dev/null
	@rm -rf .lab
