package core

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/policy"
	"holdfast.dev/holdfast/internal/replica"
	"holdfast.dev/holdfast/internal/state"
	"holdfast.dev/holdfast/internal/storage"
)

// trio is one of three members, the first, which leads; the others are connected for long.
func trio(t *testing.T) *member {
	m := startAs(t, 1, []state.Member{
		{ID: 1, Name: "a", PeerURLs: []string{"http://a:1"}}, {ID: 2, Name: "b", PeerURLs: []string{"http://b:1"}}, {ID: 3, Name: "c", PeerURLs: []string{"http://c:1"}},
	}, nil)
	m.connect(map[uint64]time.Duration{2: time.Hour, 3: time.Hour})
	return m
}

// connect says for how long peers have been connected.
func (m *member) connect(since map[uint64]time.Duration) {
	m.loop.set(func() {
		m.loop.status.Peers = nil
		for id, d := range since {
			p := replica.PeerStatus{Peer: replica.Peer{ID: id}, ActiveSince: m.time.Now().Add(-d), Active: true}
			m.loop.status.Peers = append(m.loop.status.Peers, p)
		}
	})
}

// TestNoLearners: a limit of none is no default of one.
func TestNoLearners(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Limits.MaxLearners = -1 })
	_, _, err := m.MemberAdd(m.ctx, m.anon, []string{"http://b:1"}, true)
	want(t, err, state.ErrTooManyLearners)
	if _, _, err := m.MemberAdd(m.ctx, m.anon, []string{"http://b:1"}, false); err != nil {
		t.Fatal(err)
	}
}

func TestMemberAdd(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.ClusterToken = "tkn" })
	added, all, err := m.MemberAdd(m.ctx, m.anon, []string{"http://b:1", "http://b:2"}, true)
	must(t, err)
	if added.ID == 0 || added.Name != "" || !added.Learner || len(all) != 2 {
		t.Fatalf("%+v %+v", added, all)
	}
	if id := memberID([]string{"http://b:2", "http://b:1"}, "tkn", m.time.Now()); id != added.ID {
		t.Fatalf("the order of the URLs does not matter: %x %x", id, added.ID)
	}
	if id := memberID([]string{"http://b:2", "http://b:1"}, "other", m.time.Now()); id == added.ID {
		t.Fatal("another token, another id")
	}
	_, _, err = m.MemberAdd(m.ctx, m.anon, []string{"http://c:1"}, true)
	want(t, err, state.ErrTooManyLearners)
	_, _, err = m.MemberAdd(m.ctx, m.anon, []string{"http://b:2"}, false)
	want(t, err, state.ErrPeerURLExists)
	for _, urls := range [][]string{nil, {""}, {"b:1"}, {"http://b"}, {"ftp://b:1"}, {"http://b:1/path"}, {"http://b:1", "%"}} {
		_, _, err := m.MemberAdd(m.ctx, m.anon, urls, false)
		want(t, err, ErrBadMemberURLs)
	}
	members, err := m.Members(m.ctx, m.anon, true)
	if err != nil || len(members) != 2 {
		t.Fatal(members, err)
	}
	if !m.audit.has("member add", outcomeAsked) || !m.audit.has("member add", outcomeDone) {
		t.Fatal("not in the record")
	}
	// Both URLs, another ID: a second later the same URLs make another member, once the first has gone.
	_, err = m.MemberRemove(m.ctx, m.anon, added.ID)
	must(t, err)
	_, err = m.MemberRemove(m.ctx, m.anon, added.ID)
	want(t, err, state.ErrMemberRemoved)
	_, err = m.MemberRemove(m.ctx, m.anon, 99)
	want(t, err, state.ErrMemberNotFound)
	m.pass(time.Second)
	again, _, err := m.MemberAdd(m.ctx, m.anon, []string{"http://b:1", "http://b:2"}, false)
	must(t, err)
	if again.ID == added.ID {
		t.Fatal("ids do not return")
	}
}

func TestStrictReconfig(t *testing.T) {
	t.Parallel()
	add := func(m *member) error {
		_, _, err := m.MemberAdd(m.ctx, m.anon, []string{"http://d:1"}, false)
		return err
	}
	remove := func(m *member, id uint64) error {
		_, err := m.MemberRemove(m.ctx, m.anon, id)
		return err
	}
	t.Run("all well", func(t *testing.T) { must(t, add(trio(t))) })
	t.Run("one is connected too shortly", func(t *testing.T) {
		m := trio(t)
		m.connect(map[uint64]time.Duration{2: time.Hour, 3: 4 * time.Second})
		want(t, add(m), ErrUnhealthy)
		m.pass(time.Second)
		must(t, add(m))
	})
	t.Run("one is away", func(t *testing.T) {
		m := trio(t)
		m.connect(map[uint64]time.Duration{2: time.Hour})
		want(t, add(m), ErrUnhealthy)
		want(t, remove(m, 2), ErrUnhealthy)
		must(t, remove(m, 3)) // what is away may go
	})
	t.Run("one of four is away", func(t *testing.T) {
		m := trio(t)
		must(t, add(m)) // the fourth
		m.connect(map[uint64]time.Duration{2: time.Hour, 3: time.Hour})
		_, _, err := m.MemberAdd(m.ctx, m.anon, []string{"http://e:1"}, true)
		must(t, err)
	})
	t.Run("not asked to be strict", func(t *testing.T) {
		m := trio(t)
		m.opt.NoStrictReconfig = true
		m.connect(nil)
		must(t, add(m))
	})
	t.Run("a second that has not started", func(t *testing.T) {
		m := start(t, nil)
		must(t, add(m))
		_, _, err := m.MemberAdd(m.ctx, m.anon, []string{"http://e:1"}, false)
		want(t, err, state.ErrNotEnoughStarted)
	})
}

func TestMemberUpdateAndPublish(t *testing.T) {
	t.Parallel()
	m := trio(t)
	all, err := m.MemberUpdate(m.ctx, m.anon, 2, []string{"https://new:1"})
	must(t, err)
	if all[1].PeerURLs[0] != "https://new:1" || all[1].Name != "b" {
		t.Fatalf("%+v", all)
	}
	_, err = m.MemberUpdate(m.ctx, m.anon, 2, []string{"http://a:1"})
	want(t, err, state.ErrPeerURLExists)
	_, err = m.MemberUpdate(m.ctx, m.anon, 77, []string{"http://z:1"})
	want(t, err, state.ErrMemberNotFound)
	must(t, m.Publish(m.ctx, "renamed", []string{"http://client:1"}))
	members, err := m.Members(m.ctx, m.anon, false)
	if err != nil || members[0].Name != "renamed" || members[0].ClientURLs[0] != "http://client:1" {
		t.Fatalf("%+v %v", members, err)
	}
}

func TestPromote(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	added, _, err := m.MemberAdd(m.ctx, m.anon, []string{"http://b:1"}, true)
	must(t, err)
	_, err = m.MemberPromote(m.ctx, m.anon, testMember)
	want(t, err, state.ErrNotLearner)
	_, err = m.MemberPromote(m.ctx, m.anon, 99)
	want(t, err, state.ErrMemberNotFound)
	progress := func(match uint64) {
		m.loop.set(func() {
			m.loop.status.Last = 100
			m.loop.status.Peers = []replica.PeerStatus{{Peer: replica.Peer{ID: added.ID, Learner: true}, Match: match}}
		})
	}
	for _, match := range []uint64{0, 50, 89} {
		progress(match)
		_, err = m.MemberPromote(m.ctx, m.anon, added.ID)
		want(t, err, ErrLearnerNotReady)
	}
	progress(90)
	all, err := m.MemberPromote(m.ctx, m.anon, added.ID)
	must(t, err)
	for _, member := range all {
		if member.Learner {
			t.Fatalf("%+v", all)
		}
	}
}

func TestPromoteIsForwarded(t *testing.T) {
	t.Parallel()
	leader, follower := pair(t)
	_, err := follower.MemberPromote(follower.ctx, follower.anon, 2)
	want(t, err, state.ErrNotLearner) // the leader's word
	follower.loop.set(func() { follower.loop.status.Leader = 0 })
	_, err = follower.MemberPromote(follower.ctx, follower.anon, 2)
	want(t, err, ErrNoLeader)
	_, err = leader.servePromote(t.Context(), leader.anon, nil)
	want(t, err, state.ErrPermissionDenied)
	from := policy.NewMember("b", policy.Certificate{})
	_, err = leader.servePromote(t.Context(), from, []byte{1})
	want(t, err, errMalformedCall)
	_, err = leader.servePromote(t.Context(), from, policy.Principal{}.AppendBinary(make([]byte, 8)))
	want(t, err, state.ErrPermissionDenied)
}

func TestConfBusyIsTriedAgain(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.loop.set(func() { m.loop.confErr = replica.ErrBusy })
	wait := later(t, func() error {
		_, _, err := m.MemberAdd(m.ctx, m.anon, []string{"http://b:1"}, true)
		return err
	})
	until(t, "waiting for the clock", func() bool {
		m.leadership.mu.Lock()
		defer m.leadership.mu.Unlock()
		return m.leadership.tick != nil
	})
	m.pass(1)
	must(t, wait())
	m.loop.set(func() { m.loop.confErr = replica.ErrLeaderChanged })
	_, err := m.MemberUpdate(m.ctx, m.anon, testMember, []string{"http://x:1"})
	want(t, err, replica.ErrLeaderChanged) // its fate is unknown: once only
}

func TestMoveLeader(t *testing.T) {
	t.Parallel()
	m := trio(t)
	must(t, m.MoveLeader(m.ctx, m.anon, 2))
	want(t, m.MoveLeader(m.ctx, m.anon, 77), ErrBadTransferee)
	m.lead(2, 2)
	want(t, m.MoveLeader(m.ctx, m.anon, 3), ErrNotLeader)
}

func TestStatusHealthDowngrade(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.put("a", "1")
	st, err := m.Status(m.ctx, m.anon)
	must(t, err)
	if st.Header.Revision != 2 || st.Header.Cluster != testCluster || st.Leader != testMember || st.AppliedIndex != m.loop.index ||
		st.DBSizeInUse <= 0 || st.DBSize < st.DBSizeInUse || len(st.Errors) != 0 || st.FeatureLevel != state.MaxLevel {
		t.Fatalf("%+v", st)
	}
	for _, check := range []HealthCheck{HealthAlarms, HealthCorruption, HealthLeader, HealthLinearizable, HealthNonLearner, HealthSerializable} {
		must(t, m.Health(m.ctx, check))
	}
	want(t, m.Health(m.ctx, "bogus"), ErrNotSupported)
	_, err = m.ChangeAlarm(m.ctx, m.anon, state.AlarmChange{Alarm: state.Alarm{Member: testMember, Kind: state.AlarmCorrupt}, Raise: true})
	must(t, err)
	want(t, m.Health(m.ctx, HealthCorruption), state.ErrCorrupt)
	_, err = m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")})
	want(t, err, state.ErrCorrupt)
	if m.get("a") != "1" {
		t.Fatal("reads go on")
	}
	m.loop.set(func() { m.loop.status.Leader = 0 })
	want(t, m.Health(m.ctx, HealthLeader), ErrNoLeader)
	st, err = m.Status(m.ctx, m.anon)
	if err != nil || len(st.Errors) != 2 || st.Errors[0] != "etcdserver: no leader" || !strings.Contains(st.Errors[1], "CORRUPT") {
		t.Fatalf("%+v %v", st, err)
	}
	want(t, m.Downgrade(m.ctx, m.anon, DowngradeCancel, ""), ErrNoDowngrade)
	for _, version := range []string{"", "3", "3.", "x.y", "3.6.0.1", "-3.6"} {
		want(t, m.Downgrade(m.ctx, m.anon, DowngradeValidate, version), ErrDowngradeFormat)
	}
	for _, version := range []string{"3.6", "3.6.0", "9.9"} {
		want(t, m.Downgrade(m.ctx, m.anon, DowngradeEnable, version), ErrDowngradeTarget)
	}
}

func TestRootOnly(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.auth(map[string]storage.Span{"alice": span("\x00", "∞")})
	alice := m.login("alice", "pw-alice")
	_, _, add := m.MemberAdd(m.ctx, alice, []string{"http://b:1"}, false)
	_, remove := m.MemberRemove(m.ctx, alice, 1)
	_, update := m.MemberUpdate(m.ctx, alice, 1, []string{"http://b:1"})
	_, promote := m.MemberPromote(m.ctx, alice, 1)
	_, alarm := m.ChangeAlarm(m.ctx, alice, state.AlarmChange{})
	_, hash := m.Hash(m.ctx, alice)
	_, hashKV := m.HashKV(m.ctx, alice, mvcc.SpaceEtcd, 0)
	_, hashes := m.Hashes(m.ctx, alice, nil)
	_, compact := m.Compact(m.ctx, alice, &state.Compact{Space: mvcc.SpaceEtcd, Revision: 1}, false)
	for name, err := range map[string]error{
		"add": add, "remove": remove, "update": update, "promote": promote, "alarm": alarm, "hash": hash, "hashkv": hashKV, "hashes": hashes, "compact": compact,
		"defragment": m.Defragment(m.ctx, alice), "move leader": m.MoveLeader(m.ctx, alice, 1), "downgrade": m.Downgrade(m.ctx, alice, DowngradeCancel, ""),
	} {
		if !errors.Is(err, state.ErrPermissionDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := m.Status(m.ctx, alice); err != nil {
		t.Error(err)
	}
	if _, err := m.Members(m.ctx, alice, true); err != nil {
		t.Error(err)
	}
	if _, err := m.Alarms(m.ctx, alice, state.Alarm{}); err != nil {
		t.Error(err)
	}
	_, err := m.Status(m.ctx, m.anon)
	want(t, err, state.ErrUserEmpty)
}

func TestHashes(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	for _, m := range []*member{a, b} {
		m.put("x", "1")
		m.put("x", "2")
	}
	ha, err := a.HashKV(a.ctx, a.anon, mvcc.SpaceEtcd, 0)
	must(t, err)
	hb, err := b.HashKV(b.ctx, b.anon, mvcc.SpaceEtcd, 3)
	must(t, err)
	if ha.Hash != hb.Hash || ha.HashRevision != 3 || hb.HashRevision != 3 || ha.CompactRevision != -1 {
		t.Fatalf("%+v %+v", ha, hb)
	}
	_, err = a.HashKV(a.ctx, a.anon, mvcc.SpaceEtcd, 99)
	want(t, err, mvcc.ErrFutureRevision)
	wa, err := a.Hash(a.ctx, a.anon)
	must(t, err)
	if wa.Hash == 0 || wa.Header.Revision != 3 {
		t.Fatalf("%+v", wa)
	}
	must(t, a.CompareHashes(a.ctx))
	if alarms, err := a.Alarms(a.ctx, a.anon, state.Alarm{}); err != nil || len(alarms) != 0 {
		t.Fatal(alarms, err)
	}
	// One that lags is not corrupt, one that differs is.
	a.put("y", "1")
	must(t, a.CompareHashes(a.ctx))
	b.put("y", "other")
	a.opt.CorruptInterval = time.Minute
	must(t, a.housekeep(a.ctx)) // sets the first date
	a.pass(time.Minute)
	must(t, a.housekeep(a.ctx))
	alarms, err := a.Alarms(a.ctx, a.anon, state.Alarm{Kind: state.AlarmCorrupt})
	if err != nil || len(alarms) != 1 || alarms[0].Member != 2 {
		t.Fatal(alarms, err)
	}
	for _, payload := range [][]byte{nil, make([]byte, 9), append([]byte{200}, make([]byte, 8)...)} {
		_, err := a.serveHash(t.Context(), policy.NewMember("b", policy.Certificate{}), payload)
		want(t, err, errMalformedCall)
	}
	_, err = a.serveHash(t.Context(), a.anon, append([]byte{1}, make([]byte, 8)...))
	want(t, err, state.ErrPermissionDenied)
}

func TestHousekeepSweepsAfterCompaction(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	for range 20 {
		m.put("a", strings.Repeat("x", 1000))
	}
	before, err := m.HashKV(m.ctx, m.anon, mvcc.SpaceEtcd, 0)
	must(t, err)
	_, err = m.Compact(m.ctx, m.anon, &state.Compact{Space: mvcc.SpaceEtcd, Revision: 21}, false)
	must(t, err)
	if !m.janitor.wanted.Load() {
		t.Fatal("nobody was told")
	}
	must(t, m.housekeep(m.ctx))
	if more, err := m.sweepStep(mvcc.SpaceEtcd); err != nil || more || m.janitor.wanted.Load() {
		t.Fatal("something was left", more, err)
	}
	if m.get("a") == "-" || before.Hash == 0 {
		t.Fatal("the newest version stays")
	}
}

func TestSweepRows(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.SweepRows = 7 })
	for range 20 {
		m.put("a", "x")
	}
	_, err := m.Compact(m.ctx, m.anon, &state.Compact{Space: mvcc.SpaceEtcd, Revision: 21}, false)
	must(t, err)
	steps := 1
	for {
		more, err := m.sweepStep(mvcc.SpaceEtcd)
		must(t, err)
		if !more {
			break
		}
		steps++
	}
	if steps != 3 { // 20 rows of the revision log, 7 at a time
		t.Fatalf("%d steps, want 3", steps)
	}
}

func TestAutoCompaction(t *testing.T) {
	t.Parallel()
	compacted := func(m *member) int64 { return m.hubs[mvcc.SpaceEtcd].compactRevision() }
	t.Run("by number", func(t *testing.T) {
		m := start(t, func(o *Options) { o.Compaction.Revisions = 5 })
		for range 20 {
			m.put("a", "x")
		}
		m.pass(revisionInterval)
		if c := compacted(m); c != 16 {
			t.Fatal(c)
		}
		m.pass(revisionInterval)
		m.put("a", "x")
		m.lead(9, 2)
		m.pass(revisionInterval)
		if c := compacted(m); c != 16 {
			t.Fatal("only the leader compacts", c)
		}
		m.lead(testMember, 3)
		m.pass(revisionInterval)
		if c := compacted(m); c != 17 {
			t.Fatal(c)
		}
	})
	t.Run("by age", func(t *testing.T) {
		m := start(t, func(o *Options) { o.Compaction.Period = 10 * time.Minute })
		for minute := range 25 {
			m.put("a", "x") // revision minute + 2
			m.pass(time.Minute)
			c := compacted(m)
			if minute < 9 && c != -1 {
				t.Fatalf("after %d minutes: %d", minute+1, c)
			}
			if rev := int64(minute + 2); c > 0 && c > rev-9 {
				t.Fatalf("minute %d: revision %d is compacted, which is too young", minute, c)
			}
		}
		if c := compacted(m); c < 10 {
			t.Fatal(c)
		}
	})
}

func TestFeatureLevelIsRaised(t *testing.T) {
	t.Parallel()
	m := startFounded(t, testMember, founding{[]state.Member{{ID: testMember, PeerURLs: []string{"http://a:1"}}}, state.FirstLevel}, nil)
	level := func() uint32 {
		s, err := m.Status(m.ctx, m.anon)
		must(t, err)
		return s.FeatureLevel
	}
	m.pass(time.Minute)
	if level() != state.FirstLevel {
		t.Fatal("nobody has said what it knows")
	}
	must(t, m.Publish(m.ctx, "a", nil))
	m.pass(time.Minute)
	if level() != state.MaxLevel {
		t.Fatal(level())
	}
	index := m.loop.index
	m.pass(time.Minute)
	if m.loop.index != index {
		t.Fatal("the level is the highest already")
	}
}

// TestInstall: a snapshot replaces the machine under readers and watchers.
func TestInstall(t *testing.T) {
	t.Parallel()
	ahead, m := start(t, nil), start(t, func(o *Options) { o.Boot = 99 }) // two runs of one member: what it proposes is not taken for a duplicate
	for _, x := range []*member{ahead, m} {
		x.put("a", "1")
		x.put("b", "1")
	}
	s := m.stream()
	live := s.mustWatch(t, WatchRequest{Span: span("a", "z")})
	queued := s.mustWatch(t, WatchRequest{Span: span("c", "")})
	future := s.mustWatch(t, WatchRequest{Span: span("d", ""), StartRevision: 9})
	for _, x := range []*member{ahead, m} {
		x.put("c", "1") // revision 4: seen before
	}
	for i := range 10 {
		ahead.put("d", fmt.Sprint(i)) // 5 to 14
	}
	ahead.del("a", "")
	ahead.grant(7, 100)
	must(t, ahead.Flush())

	snap, err := ahead.Snapshot()
	must(t, err)
	ahead.put("later", "not in it")
	var stream bytes.Buffer
	n, err := snap.WriteTo(&stream)
	must(t, err)
	st := snap.State()
	if n != int64(stream.Len()) || st.Applied != ahead.loop.index-1 || len(st.Members) != 1 || st.Members[0].ID != testMember {
		t.Fatalf("%d %+v", n, st)
	}
	must(t, snap.Close())

	if _, err := m.Stage("bad", bytes.NewReader(stream.Bytes()[:stream.Len()/2])); err == nil {
		t.Fatal("half a stream is no state")
	}
	staged, err := m.Stage("next", &stream)
	must(t, err)
	if got := staged.State(); got.Applied != st.Applied || got.Durable != st.Applied {
		t.Fatalf("%+v", got)
	}
	if m.get("d") != "-" {
		t.Fatal("staging changes nothing")
	}
	// A reader under way keeps the former machine.
	g := m.acquire()
	installed := later(t, staged.Install)
	until(t, "swapped", func() bool { return m.current.Load() != g })
	if page, err := g.machine.Space(mvcc.SpaceEtcd).Read(g.machine.Engine(), query("a").Query); err != nil || len(page.KVs) != 1 {
		t.Fatal(page, err)
	}
	g.release()
	must(t, installed())
	if m.get("a") != "-" || m.get("d") != "9" || m.Header(mvcc.SpaceEtcd).Revision != 15 || m.State().Applied != st.Applied {
		t.Fatal("the new machine is there")
	}
	s.wantEvents(t, queued, "+c@4") // queued before
	s.wantEvents(t, live, "+c@4")
	got := map[int64]string{}
	for len(s.lag) > 0 {
		msg := s.recv(t)
		got[msg.ID] += describe(msg.Events)
		if len(got) == 2 {
			break
		}
	}
	all := "+d@5 +d@6 +d@7 +d@8 +d@9 +d@10 +d@11 +d@12 +d@13 +d@14 "
	if got[live] != all+"-a@15 " || got[future] != all[len("+d@5 +d@6 +d@7 +d@8 "):] {
		t.Fatal(got)
	}
	m.loop.set(func() { m.loop.index = st.Applied })
	m.put("d", "live")
	s.wantEvents(t, future, "+d@16")
	s.wantEvents(t, live, "+d@16")
	s.nothing(t)

	// Discarding leaves everything as it is.
	if snap, err = ahead.Snapshot(); err != nil {
		t.Fatal(err)
	}
	stream.Reset()
	_, err = snap.WriteTo(&stream)
	must(t, err)
	must(t, snap.Close())
	staged, err = m.Stage("dropped", &stream)
	must(t, err)
	must(t, staged.Discard())
	if m.get("d") != "live" {
		t.Fatal("a state that was discarded is used")
	}
}

func TestInstallOfACompactedState(t *testing.T) {
	t.Parallel()
	ahead, m := start(t, nil), start(t, nil)
	s := m.stream()
	id := s.mustWatch(t, WatchRequest{Span: span("a", "")})
	for range 10 {
		ahead.put("a", "x")
	}
	ahead.compact(8)
	snap, err := ahead.Snapshot()
	must(t, err)
	var stream bytes.Buffer
	_, err = snap.WriteTo(&stream)
	must(t, err)
	must(t, snap.Close())
	staged, err := m.Stage("next", &stream)
	must(t, err)
	must(t, staged.Install())
	msg := s.recv(t)
	if msg.Kind != WatchCanceled || msg.ID != id || msg.CompactRevision != 8 {
		t.Fatalf("%+v", msg)
	}
}

func TestStampRefusesWhatIsNoBatch(t *testing.T) {
	t.Parallel()
	stamp := Stamp(func() time.Time { return time.UnixMilli(77) })
	if stamp(nil) || stamp([]byte("not a batch")) {
		t.Fatal("accepted")
	}
	data, err := state.EncodeBatch(state.Proposal{Member: 1, Boot: 1, Seq: 1}, []state.Call{{Request: &state.Put{Space: mvcc.SpaceEtcd, Key: []byte("a")}}})
	must(t, err)
	if !stamp(data) {
		t.Fatal("refused")
	}
	if b, err := state.DecodeBatch(data); err != nil || b.Time != 77 {
		t.Fatalf("%+v %v", b, err)
	}
}

// FuzzCallsBetweenMembers: whatever a member sends, its peer answers or refuses.
func FuzzCallsBetweenMembers(f *testing.F) {
	m := start(f, nil)
	who := policy.NewAnonymous()
	f.Add(byte(0), encodeLeaseCall(leaseCallKeys, 1, who))
	f.Add(byte(1), []byte("token.a1"))
	f.Add(byte(2), who.AppendBinary(make([]byte, 8)))
	f.Add(byte(3), append([]byte{1}, make([]byte, 8)...))
	f.Add(byte(4), who.AppendBinary([]byte{1, 'x'}))
	f.Add(byte(5), []byte{20, 10, 1, 'a'})
	f.Fuzz(func(t *testing.T, which byte, payload []byte) {
		from := policy.NewMember("b", policy.Certificate{})
		handlers := []replica.Handler{m.serveLease, m.serveToken, m.servePromote, m.serveHash, m.serveSession}
		if int(which) < len(handlers) {
			answer, err := handlers[which](t.Context(), from, payload)
			if err != nil && answer != nil {
				t.Fatal("both an answer and an error")
			}
			return
		}
		info, err := decodeLeaseInfo(1, payload)
		if err == nil && info.ID != 1 {
			t.Fatal("another lease")
		}
	})
}

func TestUnknownSpace(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	for _, space := range []mvcc.SpaceID{0, 6, 200} {
		r := query("a")
		r.Space = space
		_, err := m.Range(m.ctx, m.system, r)
		want(t, err, state.ErrUnknownSpace)
		_, err = m.HashKV(m.ctx, m.system, space, 0)
		want(t, err, state.ErrUnknownSpace)
		_, err = m.Put(m.ctx, m.system, &state.Put{Space: space, Key: []byte("a")})
		want(t, err, state.ErrUnknownSpace)
	}
}

func TestCounters(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	s := m.stream()
	s.mustWatch(t, WatchRequest{Span: span("a", "")})
	if _, err := m.Range(m.ctx, policy.Principal{}, query("a")); err == nil {
		t.Fatal("nobody reads")
	}
	if c := m.Counters(); c != (Counters{Watchers: 1, Refusals: 1}) {
		t.Fatalf("%+v", c)
	}
	s.Close()
	if c := m.Counters(); c.Watchers != 0 {
		t.Fatalf("%+v", c)
	}
}

// TestTermBeforeTheTick: the first answer in a new term names it, without waiting for the clock.
func TestTermBeforeTheTick(t *testing.T) {
	t.Parallel()
	m := start(t, nil)
	m.loop.set(func() { m.loop.status.Term = 9 })
	m.put("a", "1")
	if term := m.Header(mvcc.SpaceEtcd).Term; term != 9 {
		t.Fatalf("term %d", term)
	}
}
