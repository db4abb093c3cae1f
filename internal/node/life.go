package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/audit"
	"holdfast.dev/holdfast/internal/core"
	"holdfast.dev/holdfast/internal/node/config"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
)

// openRecord opens the audit record.
func (n *Node) openRecord() (*audit.Record, error) {
	return audit.Open(audit.Options{FS: n.env.FS, Dir: n.home.path(auditName), Ring: n.home.ring, Now: n.env.Now, Logger: n.log})
}

// coreOptions translates the configuration for core.
func (n *Node) coreOptions(m *state.Machine) (core.Options, error) {
	c := n.config
	boot, err := n.seed()
	if err != nil {
		return core.Options{}, err
	}
	period, revisions, err := c.Compaction.Keep()
	if err != nil {
		return core.Options{}, err
	}
	return core.Options{
		Machine: m, NewEngine: n.newEngine,
		OpenState: n.openMachine,
		Member:    n.store.Member(), Boot: boot, Clock: n.env.Now, Rand: n.env.Rand, Logger: n.log, Audit: n.record,
		Limits: core.Limits{
			RequestBytes: int64(c.Limits.MaxRequestBytes), TxnOps: int(c.Limits.MaxTxnOps), QuotaBytes: c.Limits.QuotaBytes,
			ReserveBytes: c.Limits.ReserveBytes, MaxLearners: learners(c.Raft.MaxLearners),
		},
		FreeDisk: n.freeDisk, AuditPrefixes: prefixes(c.Audit.Prefixes),
		Election:     c.Raft.Election,
		ClusterToken: n.card.Token, NoStrictReconfig: !c.Raft.StrictReconfig,
		AuthToken: c.Auth.Token, ReadFile: readFile, TokenTTL: time.Duration(c.Auth.TokenTTL) * time.Second, BcryptCost: int(c.Auth.BcryptCost),
		ProgressInterval: c.Watch.ProgressInterval, CheckpointInterval: checkpointInterval, CorruptInterval: c.Checks.CorruptCheckInterval,
		Compaction: core.AutoCompaction{Period: period, Revisions: revisions}, SweepRows: int(min(c.Compaction.BatchLimit, math.MaxInt32)),
		OnRevoked: n.onRevoked,
	}, nil
}

// learners translates etcd's 0, which takes no learner, into what core takes for it.
func learners(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

// freeDisk is the space left where the data directory is.
func (n *Node) freeDisk() (int64, error) { return freeSpace(n.env.FS, n.home.dir) }

// freeSpace is the space left in the file system of dir. One that has no size, as some in user space say of themselves, is not
// full: it does not tell.
func freeSpace(fs vfs.FS, dir string) (int64, error) {
	u, err := fs.GetDiskUsage(dir)
	if err == nil && u.TotalBytes == 0 {
		err = errors.New("the file system does not tell how large it is")
	}
	return int64(min(u.AvailBytes, math.MaxInt64)), err
}

func prefixes(list []string) (out [][]byte) {
	for _, p := range list {
		out = append(out, []byte(p))
	}
	return out
}

const (
	checkpointInterval = 5 * time.Minute
	clockPeriod        = 100 * time.Millisecond
	slowPeriod         = time.Second
)

// keepTime is the clock of everything that has none of its own.
func (n *Node) keepTime() {
	tick := time.NewTicker(clockPeriod)
	defer tick.Stop()
	slow := n.env.Now()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
		now := n.env.Now()
		n.core.Tick(now)
		if now.Sub(slow) < slowPeriod {
			continue
		}
		slow = now
		for _, i := range n.ids.all() {
			i.Tick(now)
		}
		if n.pki != nil {
			n.pki.tick(now)
		}
	}
}

// keepHouse removes what was compacted and compares hashes, beside the clock.
func (n *Node) keepHouse() {
	if err := n.core.Housekeep(n.ctx); err != nil && n.ctx.Err() == nil {
		n.log.Error("housekeeping ended", "error", err)
	}
}

// timedMachine logs when applying takes long.
type timedMachine struct {
	*core.Core
	limit time.Duration
	log   *slog.Logger
}

// Apply implements replica.Machine.
func (m timedMachine) Apply(entries []replica.Entry) ([]replica.Decision, error) {
	start := time.Now()
	decisions, err := m.Core.Apply(entries)
	if took := time.Since(start); took > m.limit {
		m.log.Warn("apply request took too long", "took", took, "expected-duration", m.limit, "entries", len(entries))
	}
	return decisions, err
}

// settle takes a started member to where it serves: it waits for a leader and its own state, says who it is, and, under
// `holdfast server`, establishes the authority or is promoted.
func (n *Node) settle() {
	if err := n.join(); err != nil {
		if n.ctx.Err() == nil {
			n.fail(err)
		}
		return
	}
	close(n.ready)
	n.log.Info("ready to serve client requests")
	n.front.announce()
	if n.config.Seal.ScrubBytesPerSecond > 0 {
		n.owned.Go(n.scrub)
	}
}

// join takes steps until this member serves. While there is no leader it serves what it can after a while: a
// serializable read needs none.
func (n *Node) join() error {
	serving, published := false, false
	start := n.env.Now()
	for {
		err := n.step(&published)
		if n.ctx.Err() != nil {
			return context.Cause(n.ctx)
		}
		late := n.env.Now().Sub(start) > 5*n.config.Raft.Election && n.replica.Status().Applied > 0
		if !serving && (err == nil || late) {
			n.front.serve()
			serving = true
			if err != nil {
				n.log.Warn("not ready yet: only what this member can answer alone is served", "error", err)
			}
		}
		if err == nil {
			return nil
		}
		n.log.Debug("not ready yet", "error", err)
		pause := clockPeriod
		if published { // the log works: what is missing takes its time, and every attempt is in the audit record
			pause = slowPeriod
		}
		select {
		case <-n.ctx.Done():
			return context.Cause(n.ctx)
		case <-time.After(pause):
		}
	}
}

// step tells the cluster this member's name and client URLs, once, and under `holdfast server` has it promoted and its
// authority ready.
func (n *Node) step(published *bool) error {
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second+2*n.config.Raft.Election)
	defer cancel()
	if n.replica.Status().Applied == 0 {
		return errors.New("this member has not received the cluster's state yet")
	}
	if !*published {
		if err := n.core.Publish(ctx, n.config.Name, n.config.Advertise.Client.Strings()); err != nil {
			return err
		}
		*published = true
		n.log.Info("published local member to cluster through raft", "local-member-id", fmt.Sprintf("%x", n.store.Member()),
			"local-member-attributes", fmt.Sprintf("{Name:%s ClientURLs:%v}", n.config.Name, n.config.Advertise.Client.Strings()),
			"cluster-id", fmt.Sprintf("%x", n.store.Cluster()))
	}
	if n.config.Mode == config.ModeEtcd {
		return nil
	}
	if n.replica.Status().Learner {
		if err := n.promote(ctx); err != nil {
			return err
		}
	}
	if n.config.Mode == config.ModeConsul {
		return n.moveIn(ctx)
	}
	return n.pki.settle(ctx)
}

// promote asks the leader to make a voter of this member, which it does as soon as the member has caught up.
func (n *Node) promote(ctx context.Context) error {
	if _, err := n.core.MemberPromote(ctx, n.system, n.store.Member()); err != nil {
		return err
	}
	n.log.Info("promoted to a voting member")
	return nil
}

// moveIn tells the cluster where this member is reached now, if that is not what it knows: a Consul agent may start with
// another address, or with TLS where it had none.
func (n *Node) moveIn(ctx context.Context) error {
	members, err := n.core.Members(ctx, n.system, true)
	if err != nil {
		return err
	}
	want := n.config.Advertise.Peer.Strings()
	for _, m := range members {
		if m.ID == n.store.Member() && !slices.Equal(m.PeerURLs, want) {
			_, err = n.core.MemberUpdate(ctx, n.system, m.ID, want)
			return err
		}
	}
	return nil
}
