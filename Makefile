# Every target works on a fresh machine with Go; the ones that need more say so.
GO      ?= go
BIN     := bin/holdfast
CONFORM := cd test/compat/etcd && $(GO) run ./conformance -binary ../../../$(BIN)
CONSUL  := cd test/compat/consul && $(GO) run ./conformance -binary ../../../$(BIN)

.PHONY: build run test race lint guides conformance conformance-quick conformance-consul conformance-consul-quick conformance-k8s robustness robustness-quick e2e house oracle oracle-etcd torture revocation lab scorecard scale simulate simulate-planted bench fuzz fuzz-seeds clean

build: ## the binary, in bin/holdfast
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN) ./cmd/holdfast

run: build ## a secured server on an empty directory, shown at work; stays up until Ctrl-C
	$(BIN) demo

test: ## what CI runs: every test of the house and the short end-to-end tests
	$(GO) vet ./...
	$(GO) test ./...
	cd test && $(GO) vet ./... && $(GO) test -short ./...
	cd test/compat/etcd && $(GO) vet ./conformance && $(GO) test ./conformance
	cd test/compat/consul && $(GO) vet ./conformance && $(GO) test ./conformance
	cd test/compat/robustness && $(GO) vet . && $(GO) test .

race: ## the same under the race detector
	$(GO) test -race ./...

lint: ## vet, gofmt and staticcheck
	@test -z "$$(gofmt -l cmd internal test)" || { echo "not gofmt'ed:"; gofmt -l cmd internal test; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

conformance: build ## etcd's own suite, whole (about 17 minutes on 2 cores)
	$(CONFORM)

conformance-quick: build ## the part of it that CI runs (under 6 minutes)
	$(CONFORM) -minimal -run '^(TestKV.*|TestTxn.*|TestWatch.*|TestLease.*|TestMemberAdd|TestMemberRemove)$$'

conformance-consul: build ## the tests of Consul's own client, whole, and OpenTofu's consul backend
	$(CONSUL) -all
	$(CONSUL) -opentofu

conformance-consul-quick: build ## the part of them that CI runs: KV, sessions, locks, semaphores, transactions, status, events
	$(CONSUL)

conformance-k8s: build ## Kubernetes' own providers of encrypted values, its reader of EncryptionConfiguration, its client of KMS v2
	cd test/compat/k8s && HOLDFAST_BIN=$(abspath $(BIN)) $(GO) test -count=1 ./...

robustness: ## etcd's robustness suite: every scenario three times, with faults injected (about 15 minutes; more on a busy machine)
	cd test/compat/robustness && $(GO) run .

robustness-quick: ## two scenarios of it, once each
	cd test/compat/robustness && $(GO) run . -quick

e2e: build ## end-to-end: guides' command lines, canary, bit flips
	cd test && $(GO) test -count=1 -v -timeout 30m ./e2e

guides: build ## follow every page of docs/guides, command by command, and compare what comes back (root for all of it)
	.ci/guides

house: build ## all data of all paths on three members, killed in the middle of each, HOUSE rounds (default 5, about 9 minutes)
	cd test && HOLDFAST_BIN=$(CURDIR)/$(BIN) HOLDFAST_HOUSE=$${HOUSE:-5} $(GO) test -count=1 -v -timeout 60m -run 'TestHouse$$' ./e2e

oracle: build ## who may do what: CASES requests (default 100000) of every kind by every kind of caller, beside a naive model
	cd test && $(GO) run ./oracle -binary ../$(BIN) -cases $${CASES:-100000} -seed $${SEED:-1}

oracle-etcd: ## the same model and cases against the real etcd, built from its Go module
	cd test && $(GO) run ./oracle -against etcd -cases $${CASES:-100000} -seed $${SEED:-1}

torture: build ## kill -9 at random under load, 100 times on one member and on three
	cd test && HOLDFAST_TORTURE=1 $(GO) test -count=1 -v -timeout 60m -run TestKill ./e2e

revocation: build ## 200 live connections over three members, revoked 20 times: time to the last one cut
	cd test && HOLDFAST_BIN=$(CURDIR)/$(BIN) HOLDFAST_REVOCATION=1 $(GO) test -count=1 -v -timeout 30m -run 'TestRevocation$$' ./e2e

scorecard: build ## the rows of docs/reliability.md that have a test of their own, in full (hours); figures are appended to SCORECARD_RESULTS (default bin/scorecard.jsonl)
	cd test && SCORECARD=full SCORECARD_RESULTS=$${SCORECARD_RESULTS:-$(CURDIR)/bin/scorecard.jsonl} $(GO) test -count=1 -v -timeout 600m ./scorecard/...
	cd test && SCORECARD=full SCORECARD_RESULTS=$${SCORECARD_RESULTS:-$(CURDIR)/bin/scorecard.jsonl} HOLDFAST_BIN=$(CURDIR)/$(BIN) HOLDFAST_HOUSE=1 $(GO) test -count=1 -v -timeout 300m -run 'TestHouse$$|TestRow' ./e2e

lab: ## real members under random faults, judged by what clients saw: ten minutes, root; LAB="-for 1h -members 5" for more
	cd test && $(GO) run ./lab $(LAB)

scale: build ## a million keys: start, memory, disk, paged lists
	cd test && HOLDFAST_SCALE=1 $(GO) test -count=1 -v -timeout 60m -run TestScale ./e2e

simulate: ## SEEDS simulated clusters (default 5000) from FIRST on (default 1) of 30 virtual minutes each, PROCS processes (default 2)
	SIM_SEEDS=$(or $(SEEDS),5000) SIM_FIRST=$(or $(FIRST),1) SIM_PROCS=$(or $(PROCS),2) $(GO) test -count=1 -v -timeout 0 -run 'TestSeeds$$' ./internal/clustertest

simulate-planted: ## each planted bug is looked for among 200 seeds: it must be found
	SIM_PLANTED=1 $(GO) test -count=1 -v -timeout 0 -run 'TestPlantedSeeds$$' ./internal/clustertest

bench: build ## Holdfast beside etcd 3.7.3 and an empty server, A B A B, same load, into docs/benchmarks.md (about 20 minutes; wants an idle machine)
	cd test/bench && $(GO) run . -binary ../../$(BIN) -write ../../docs/benchmarks.md

fuzz: ## every fuzz target for FUZZTIME (default 30s), two at once, with a table; FUZZ=pattern for some, RESUME=1 to go on
	.ci/fuzz

fuzz-seeds: ## seeds and corpora of all fuzz targets, and whether each decoder is run by them
	.ci/fuzz -seeds

clean:
	rm -rf bin
