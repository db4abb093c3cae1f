package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const emptyWatch = "mvcc: watcher range is empty"

// openWatch is a watch that the model follows: what it has to say, and whether its caller still may hear it.
type openWatch struct {
	caller
	name     string // of the user that it was opened as; empty: none yet
	life     int
	revision int64 // of the user store, for a JWT
	request  *etcdserverpb.WatchCreateRequest
	want     []change
	lost     bool // the caller may not any more

	said   string // the case
	stream etcdserverpb.Watch_WatchClient
	end    context.CancelFunc
	heard  chan heard
	got    []*mvccpb.Event
}

type heard struct {
	resp *etcdserverpb.WatchResponse
	err  error
}

// mayWatch decides about the creation of a watch and returns what the model follows.
func (m *model) mayWatch(c caller, r *etcdserverpb.WatchCreateRequest) (*openWatch, string) {
	key, end := string(r.Key), string(r.RangeEnd)
	if key == "" {
		key = "\x00"
	}
	if refusal := m.checkToken(c); refusal != granted {
		return nil, refusal
	}
	empty := end != "" && end != "\x00" && key >= end
	if empty && !m.fl().etcd {
		return nil, emptyWatch
	}
	if refusal := m.may(c, false, key, end); refusal != granted {
		return nil, refusal
	}
	if empty {
		return nil, emptyWatch
	}
	w := &openWatch{caller: c, request: proto.Clone(r).(*etcdserverpb.WatchCreateRequest)}
	w.request.Key = []byte(key)
	if m.on && !m.admin(c) {
		_, name, revision, _ := m.actor(c)
		w.name, w.revision, w.life = name, int64(revision), m.users[name].life
	}
	if start := r.StartRevision; start > 0 {
		for _, ch := range m.changes {
			if ch.revision >= start && w.sees(ch) {
				w.want = append(w.want, ch)
			}
		}
	}
	return w, granted
}

func (w *openWatch) sees(c change) bool {
	for _, f := range w.request.Filters {
		if f == etcdserverpb.WatchCreateRequest_NOPUT && !c.deleted || f == etcdserverpb.WatchCreateRequest_NODELETE && c.deleted {
			return false
		}
	}
	return within(string(c.kv.Key), string(w.request.Key), string(w.request.RangeEnd))
}

// stillMay decides whether a watch goes on. etcd looks only once; Holdfast whenever the user store changes.
func (m *model) stillMay(w *openWatch) bool {
	key, end := string(w.request.Key), string(w.request.RangeEnd)
	switch {
	case m.fl().etcd || m.admin(w.caller):
		return true
	case !m.on:
		return m.whenOff() == granted
	case w.name == "": // opened while there were no users: the connection says who it is
		return m.may(caller{cert: w.cert, role: w.role}, false, key, end) == granted
	}
	u := m.users[w.name]
	if u == nil || u.life != w.life || m.jwt && w.token != nil && uint64(w.revision) != m.people.revision {
		return false
	}
	for _, k := range keysOf(key, end) {
		if !u.roles["root"] && !m.permits(u, false, k) {
			return false
		}
	}
	return true
}

// follow tells the open watches what has changed since.
func (m *model) follow(from int) {
	for _, w := range m.watches {
		for _, c := range m.changes[from:] {
			if !w.lost && w.sees(c) {
				w.want = append(w.want, c)
			}
		}
		w.lost = w.lost || !m.stillMay(w)
	}
}

// open sends the creation of a watch and returns the text of its refusal.
func (e *endpoint) open(c Case, tokenText string, r *etcdserverpb.WatchCreateRequest) (*openWatch, string, error) {
	conn, err := e.conn(c.Cert)
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithCancel(context.Background())
	if tokenText != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "token", tokenText)
	}
	w := &openWatch{end: cancel, heard: make(chan heard, 4096)}
	if w.stream, err = etcdserverpb.NewWatchClient(conn).Watch(ctx); err != nil {
		cancel()
		return nil, status.Convert(err).Message(), nil
	}
	create := &etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: r}}
	if err := w.stream.Send(create); err != nil {
		cancel()
		return nil, "", err
	}
	go func() {
		for {
			resp, err := w.stream.Recv()
			select {
			case w.heard <- heard{resp, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	first, err := w.next(patience)
	switch {
	case err != nil:
		cancel()
		return nil, status.Convert(err).Message(), nil
	case !first.Created:
		cancel()
		return nil, "", fmt.Errorf("the first message of a watch is %v", first)
	case first.Canceled:
		cancel()
		return nil, first.CancelReason, nil
	}
	return w, granted, nil
}

func (w *openWatch) next(limit time.Duration) (*etcdserverpb.WatchResponse, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case h := <-w.heard:
		return h.resp, h.err
	case <-timer.C:
		return nil, context.DeadlineExceeded
	}
}

// settle waits until a watch has said everything up to a revision, or has ended if it has to, and compares.
func (w *openWatch) settle(revision int64) string {
	if w.lost {
		return w.settleLost()
	}
	progress := &etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_ProgressRequest{ProgressRequest: &etcdserverpb.WatchProgressRequest{}}}
	limit := time.Now().Add(patience)
	var asked time.Time
	for {
		if time.Since(asked) > 200*time.Millisecond {
			if time.Now().After(limit) {
				return w.differs("it has not come to revision " + fmt.Sprint(revision))
			}
			if err := w.stream.Send(progress); err != nil {
				return w.differs("it cannot be asked: " + err.Error())
			}
			asked = time.Now()
		}
		resp, err := w.next(200 * time.Millisecond)
		switch {
		case err == context.DeadlineExceeded:
			continue
		case err != nil:
			return w.differs("it ended: " + err.Error())
		case resp.Canceled:
			return w.differs("it was cancelled: " + resp.CancelReason)
		}
		w.got = append(w.got, resp.Events...)
		if resp.WatchId == -1 && len(resp.Events) == 0 && resp.Header.GetRevision() >= revision {
			return w.compare(true)
		}
	}
}

func (w *openWatch) settleLost() string {
	for {
		resp, err := w.next(patience)
		switch {
		case err == context.DeadlineExceeded:
			return w.differs("its caller may not read any more, and it goes on")
		case err != nil:
			if !isRefusal(err.Error()) {
				return w.differs("it ended with " + err.Error())
			}
			return w.compare(false)
		}
		w.got = append(w.got, resp.Events...)
		if resp.Canceled {
			if !isRefusal(resp.CancelReason) {
				return w.differs("it was cancelled with " + resp.CancelReason)
			}
			return w.compare(false)
		}
	}
}

func (w *openWatch) differs(what string) string { return "the watch of " + w.said + ": " + what }

// compare says what is wrong with the events. One that was cut may not have said everything, but nothing else either.
func (w *openWatch) compare(whole bool) string {
	for i, e := range w.got {
		if i >= len(w.want) {
			return w.differs(fmt.Sprintf("an event too much: %v", e))
		}
		want := &mvccpb.Event{Kv: w.want[i].kv}
		if w.want[i].deleted {
			want.Type = mvccpb.Event_DELETE
		}
		if w.request.PrevKv {
			want.PrevKv = w.want[i].prev
		}
		if !proto.Equal(e, want) {
			return w.differs(fmt.Sprintf("event %d is %v, not %v", i, e, want))
		}
	}
	if whole && len(w.got) != len(w.want) {
		return w.differs(fmt.Sprintf("%d events of %d", len(w.got), len(w.want)))
	}
	return ""
}

func (w *openWatch) close() {
	if w.end != nil {
		w.end()
	}
}

// sameWords compares the text of a refusal; that of a watch has its code before it.
func sameWords(got, want string) bool {
	return got == want || want != granted && strings.HasSuffix(got, want)
}
