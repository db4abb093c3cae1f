package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast.dev/holdfast/internal/seal"
)

// scrubPause is between the end of one scrub and the beginning of the next.
const scrubPause = time.Hour

// scrub reads every sealed file again and again, slowly, so that damage is found before it is needed. What it finds is
// logged, counted in a metric and shown by status; the member goes on, because a damaged byte is not served: whoever needs
// it ends the member.
func (n *Node) scrub() {
	gauge := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "holdfast_damaged_files", Help: "Files of the data directory that did not verify when the scrub last read them.",
	}, func() float64 { return float64(n.findings.Load()) })
	if n.api != nil { // a Consul agent's member has no metrics of its own
		if err := n.api.Registry().Register(gauge); err != nil {
			n.log.Warn("the scrub's metric cannot be shown", "error", err)
		}
	}
	for n.ctx.Err() == nil {
		n.scrubOnce()
		select {
		case <-n.ctx.Done():
		case <-time.After(scrubPause):
		}
	}
}

func (n *Node) scrubOnce() {
	found := map[string]bool{}
	err := seal.Scrub(n.ctx, n.env.FS, n.home.ring, n.home.dir, int(n.config.Seal.ScrubBytesPerSecond), func(f seal.Finding) {
		found[f.Path] = true
		n.findings.Store(max(n.findings.Load(), int64(len(found))))
		n.log.Error("the scrub found a damaged file", "path", f.Path, "offset", f.Offset, "kind", f.Kind, "error", f.Err, "hint", scrubHint)
	})
	if n.ctx.Err() != nil {
		return
	}
	if err != nil {
		n.log.Warn("the scrub was cut short", "error", err)
		return
	}
	n.findings.Store(int64(len(found)))
	n.log.Debug("the scrub has read every sealed file", "damaged", len(found))
}

const scrubHint = "the member ends when it needs what is damaged; before that, remove it from its cluster, move the data directory away and let it join anew; " +
	"give a cluster of one member a second one first, or copy out what clients can read"
