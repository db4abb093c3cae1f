package etcdapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/state"
)

// healthTimeout bounds a check that needs the cluster. etcd's is its request timeout.
const healthTimeout = 7 * time.Second

// NewMetricsHandler serves what a separate metrics listener serves: /metrics, /health, /livez, /readyz.
func (a *API) NewMetricsHandler() http.Handler {
	mux := http.NewServeMux()
	a.handleMetrics(mux)
	a.handleHealth(mux)
	return mux
}

func (a *API) handleMetrics(mux *http.ServeMux) {
	h := promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{Registry: a.metrics.registry})
	mux.Handle("/metrics", promhttp.InstrumentMetricHandler(a.metrics.registry, h))
}

func (a *API) handleHealth(mux *http.ServeMux) {
	mux.HandleFunc("/health", get(a.serveHealth))
	a.handleChecks(mux, "livez", []core.HealthCheck{core.HealthSerializable})
	a.handleChecks(mux, "readyz", []core.HealthCheck{
		core.HealthCorruption, core.HealthSerializable, core.HealthLinearizable, core.HealthNonLearner})
}

// get refuses other methods than GET, as etcd does.
func get(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	}
}

// querySet returns the values of a query parameter that are not empty.
func querySet(r *http.Request, name string) map[string]bool {
	set := make(map[string]bool)
	for _, v := range r.URL.Query()[name] {
		if v != "" {
			set[v] = true
		}
	}
	return set
}

// serveHealth is /health: alarms, then whether there is a leader, then a read. ?serializable=true asks about this member
// alone, ?exclude=NOSPACE leaves an alarm out.
func (a *API) serveHealth(w http.ResponseWriter, r *http.Request) {
	reason := a.ill(r.Context(), querySet(r, "exclude"), r.URL.Query().Get("serializable") == "true")
	body, err := json.Marshal(struct {
		Health string `json:"health"`
		Reason string `json:"reason"`
	}{fmt.Sprint(reason == ""), reason})
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	if reason != "" {
		a.metrics.healthFailed.Inc()
		a.log.Warn("/health error", "reason", reason)
		http.Error(w, string(body), http.StatusServiceUnavailable)
		return
	}
	a.metrics.healthOK.Inc()
	if _, err := w.Write(body); err != nil {
		a.log.Debug("the answer of /health was not read", "error", err)
	}
}

// ill returns why the member is not healthy, in etcd's words; empty if it is.
func (a *API) ill(ctx context.Context, exclude map[string]bool, serializable bool) string {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	for _, alarm := range a.o.Report().Alarms {
		if name := alarmType(alarm.Kind).String(); !exclude[name] {
			return "ALARM " + name
		}
	}
	check := core.HealthSerializable
	if !serializable {
		if _, lost := a.core.NoLeaderSince(); lost {
			return "RAFT NO LEADER"
		}
		check = core.HealthLinearizable
	}
	if err := a.core.Health(ctx, check); err != nil {
		return "RANGE ERROR:" + plain(err)
	}
	return ""
}

// plain returns the text of err as a client may see it.
func plain(err error) string {
	text := grpcError(err).Error()
	if _, desc, ok := strings.Cut(text, " desc = "); ok {
		return desc
	}
	return text
}

// failure words why a check failed, as etcd does.
func failure(c core.HealthCheck, err error) string {
	switch {
	case c == core.HealthCorruption && errors.Is(err, state.ErrCorrupt):
		return "alarm activated: CORRUPT"
	case c == core.HealthNonLearner && errors.Is(err, core.ErrLearner):
		return "not supported for learner"
	}
	return plain(err)
}

// handleChecks serves /kind, which runs checks except those named by ?exclude=, and /kind/CHECK for each.
func (a *API) handleChecks(mux *http.ServeMux, kind string, checks []core.HealthCheck) {
	mux.HandleFunc("/"+kind, get(func(w http.ResponseWriter, r *http.Request) {
		exclude := querySet(r, "exclude")
		run := make([]core.HealthCheck, 0, len(checks))
		for _, c := range checks {
			if exclude[string(c)] {
				delete(exclude, string(c))
			} else {
				run = append(run, c)
			}
		}
		if len(exclude) > 0 {
			a.log.Warn("some health checks cannot be excluded", "missing-health-checks", slices.Sorted(maps.Keys(exclude)))
		}
		a.serveChecks(w, r, kind, run)
	}))
	for _, c := range checks {
		mux.HandleFunc("/"+kind+"/"+string(c), get(func(w http.ResponseWriter, r *http.Request) {
			a.serveChecks(w, r, kind, []core.HealthCheck{c})
		}))
	}
}

func (a *API) serveChecks(w http.ResponseWriter, r *http.Request, kind string, checks []core.HealthCheck) {
	ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
	defer cancel()
	var report strings.Builder
	failed := false
	for _, c := range checks {
		outcome, value := "success", 1.0
		if err := a.core.Health(ctx, c); err != nil {
			outcome, value, failed = "error", 0, true
			fmt.Fprintf(&report, "[-]%s failed: %s\n", c, failure(c, err))
		} else {
			fmt.Fprintf(&report, "[+]%s ok\n", c)
		}
		a.metrics.healthGauge.WithLabelValues(kind, string(c)).Set(value)
		a.metrics.healthCount.WithLabelValues(kind, string(c), outcome).Inc()
	}
	if failed {
		a.log.Warn("Health check error", "path", r.URL.Path, "reason", report.String())
		http.Error(w, report.String(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	text := "ok\n"
	if r.URL.Query().Has("verbose") {
		text = report.String() + text
	}
	if _, err := w.Write([]byte(text)); err != nil {
		a.log.Debug("the answer of a health check was not read", "error", err)
	}
}
