// Package storage keeps ordered bytes on disk. It is the only importer of pebble.
//
// Job: atomic batches, point reads, iterators that know the prefix of a key, snapshots, and what of it all is already
// durable. Non-job: what the bytes mean, encryption (the FS given to Open does that), and the write-ahead log: the Raft
// log is the only one, so a batch is atomic and visible when Apply returns but durable only after the next Flush.
//
// Invariants:
//   - After a crash the engine holds the state after some batch in the order of Apply, never a part of one and never a
//     later batch without an earlier one.
//   - Keys are ordered as by bytes.Compare. They start with a byte below 0xff.
//   - A failed background write, a failed sync and a corrupt block are handed to Options.OnFatal once; nothing read
//     from a corrupt block is returned.
//
// Key shape: Options.Split says how much of a key is its prefix. Filters are built on prefixes, SeekPrefixGE looks
// inside one prefix, NextPrefix leaves it. A key without a suffix is its own prefix. See Options.Split for the rules.
//
// Lock order: the iterator pool's lock is a leaf.
package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast.dev/holdfast/internal/fault"
)

// Sizes used when Options leaves them 0, in bytes.
const (
	DefaultCacheBytes    = 64 << 20
	DefaultMemTableBytes = 16 << 20
)

const (
	formatVersion  = pebble.FormatTableFormatV6
	blockBytes     = 8 << 10 // a point read loads and decrypts one block: small ones halve its cost, and long walks hardly notice
	filterBits     = bloom.FilterPolicy(10)
	baseTableBytes = 4 << 20
	maxOpenFiles   = 1000
)

// ErrCorrupt is in the chain of every error that stems from stored bytes that do not verify.
var ErrCorrupt = fault.New(fault.Corrupt, "stored data is corrupt")

// Options say where an engine keeps its files and how much memory it may use.
type Options struct {
	FS  vfs.FS // nil: the operating system's
	Dir string

	CacheBytes    int64 // block cache; 0: DefaultCacheBytes
	MemTableBytes int64 // unflushed bytes after which a flush starts; 0: DefaultMemTableBytes

	// Split returns the length of the prefix of key; nil: the whole key. It must hold that no prefix that is followed by
	// a suffix is itself the beginning of another prefix, that such a prefix does not end in 0xff, and that Split of it
	// with its last byte raised by one is the whole. The directory remembers no Split: it is part of the key format.
	Split func(key []byte) int

	Logger *slog.Logger // nil: slog.Default()

	// OnFatal is told, at most once, why the engine can no longer keep its promises. It should end the process; it is
	// called on an engine goroutine and must not call the engine. Where pebble cannot go on, that goroutine stands still
	// for good afterwards, with pebble's locks: every call, Close too, may then block, so the owner waits for none. If it is
	// nil, the engine panics.
	OnFatal func(error)

	// Settle, if set, is called at the start for each file that says which tables count, and makes durable what it holds. A former
	// process may have failed to sync it, and a plain sync would not help then (seal.Rewrite); pebble goes by it for some time,
	// and tells what it counts as flushed.
	Settle func(path string) error

	// OnFlushed, if set, is called after each flush has become durable. It must not call the engine.
	OnFlushed func()
}

// Engine is one open directory. Its methods may be called concurrently.
type Engine struct {
	db        *pebble.DB
	cache     *pebble.Cache
	log       *slog.Logger
	onFatal   func(error)
	onFlushed func()
	fatalOnce sync.Once

	// generation changes whenever an iterator opened before would show too little or hold on to files that are gone.
	generation atomic.Uint64
	pool       iteratorPool
}

// Open opens the directory, creating it if it does not exist.
func Open(o Options) (*Engine, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = DefaultMemTableBytes
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	e := &Engine{log: o.Logger, onFatal: o.OnFatal, onFlushed: o.OnFlushed, cache: pebble.NewCache(o.CacheBytes)}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if err := o.settle(); err != nil {
		e.cache.Unref()
		return nil, fmt.Errorf("storage: settle what a former run has left: %w", err)
	}
	o.FS = &directories{o.FS, e}
	db, err := pebble.Open(o.Dir, e.pebbleOptions(o))
	if err != nil {
		e.cache.Unref()
		return nil, fmt.Errorf("storage: open: %w", corruptError(err))
	}
	e.db = db
	return e, nil
}

func (o *Options) settle() error {
	if o.Settle == nil {
		return nil
	}
	names, err := o.FS.List(o.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "MANIFEST-") {
			continue
		}
		if err := o.Settle(o.FS.PathJoin(o.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) pebbleOptions(o Options) *pebble.Options {
	po := &pebble.Options{
		FS:                          o.FS,
		Cache:                       e.cache,
		Comparer:                    newComparer(o.Split),
		DisableWAL:                  true,
		FormatMajorVersion:          formatVersion,
		MemTableSize:                uint64(o.MemTableBytes),
		MemTableStopWritesThreshold: 4,
		MaxOpenFiles:                maxOpenFiles,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		LBaseMaxBytes:               64 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		Logger:                      logAdapter{e},
		AllocatorSizeClasses:        allocatorClasses(),
		EventListener:               e.listener(),
	}
	for i := range po.Levels {
		po.Levels[i] = pebble.LevelOptions{
			BlockSize:      blockBytes,
			IndexBlockSize: 256 << 10,
			FilterPolicy:   filterBits,
			FilterType:     pebble.TableFilter,
			Compression:    func() *sstable.CompressionProfile { return sstable.SnappyCompression },
		}
		po.TargetFileSizes[i] = baseTableBytes << min(i, 4)
	}
	return po
}

// allocatorClasses are those sizes of Go's allocator that blocks come near to: a block that just misses one wastes memory
// in the cache. In a binary built with cgo the cache is malloc's, which fragments more: build without.
func allocatorClasses() []int {
	return []int{6144, 6528, 6784, 6912, 8192, 9472, 9728, 10240, 10880, 12288, 13568, 14336, 16384}
}

func (e *Engine) listener() *pebble.EventListener {
	stale := func() { e.generation.Add(1) }
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			if !errors.Is(err, context.Canceled) && !errors.Is(err, pebble.ErrCancelledCompaction) {
				e.fatal(fmt.Errorf("storage: background work: %w", corruptError(err)))
			}
		},
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			e.fatal(fmt.Errorf("storage: table %s: %w", info.Path, corruptError(info.Details)))
		},
		FlushEnd: func(info pebble.FlushInfo) {
			stale()
			if info.Err == nil && e.onFlushed != nil {
				e.onFlushed()
			}
		},
		CompactionEnd: func(pebble.CompactionInfo) { stale() },
		DiskSlow: func(info pebble.DiskSlowInfo) {
			e.log.Warn("disk is slow", "operation", info.OpType.String(), "duration", info.Duration)
		},
		WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
			e.log.Warn("writes wait for the storage engine", "reason", info.Reason)
		},
	}
}

// fatal reports err to the owner, the first time.
func (e *Engine) fatal(err error) {
	e.fatalOnce.Do(func() {
		e.log.Error("storage cannot go on", "error", err)
		if e.onFatal == nil {
			panic(err)
		}
		e.onFatal(err)
	})
}

// check passes err on; corruption is reported as fatal on the way.
func (e *Engine) check(err error) error {
	if err == nil {
		return nil
	}
	err = corruptError(err)
	if fault.From(err).Kind == fault.Corrupt {
		e.fatal(fmt.Errorf("storage: read: %w", err))
	}
	return err
}

// corruptError puts ErrCorrupt into the chain of pebble's corruption errors.
func corruptError(err error) error {
	if err != nil && pebble.IsCorruptionError(err) && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// Get looks key up. The value is appended to buf[:0]; ok is false if there is none.
func (e *Engine) Get(key, buf []byte) (value []byte, ok bool, err error) {
	value, ok, err = get(e.db, key, buf)
	return value, ok, e.check(err)
}

func get(r pebble.Reader, key, buf []byte) ([]byte, bool, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	value := append(buf[:0], v...)
	return value, true, closer.Close()
}

// Durable looks key up in what a crash would leave. The value is freshly allocated.
func (e *Engine) Durable(key []byte) (value []byte, ok bool, err error) {
	it, err := e.db.NewIter(&pebble.IterOptions{OnlyReadGuaranteedDurable: true})
	if err != nil {
		return nil, false, e.check(err)
	}
	if it.SeekPrefixGE(key) && string(it.Key()) == string(key) {
		v, verr := it.ValueAndErr()
		value, ok, err = append([]byte{}, v...), verr == nil, verr
	}
	if err == nil {
		err = it.Error()
	}
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	return value, ok && err == nil, e.check(err)
}

// NewBatch returns an empty batch. It must be closed.
func (e *Engine) NewBatch() *Batch { return &Batch{b: e.db.NewBatch()} }

// Apply makes the batch visible, all of it or, on error, nothing. The batch can be Reset and used again afterwards.
func (e *Engine) Apply(b *Batch) error {
	err := e.db.Apply(b.b, pebble.NoSync)
	e.generation.Add(1)
	e.pool.drain()
	if err != nil {
		return fmt.Errorf("storage: apply: %w", e.check(err))
	}
	return nil
}

// Flush makes everything applied so far durable.
func (e *Engine) Flush() error {
	if err := e.db.Flush(); err != nil {
		return fmt.Errorf("storage: flush: %w", e.check(err))
	}
	return nil
}

// Compact rewrites the tables that hold keys of s, so that deleted bytes leave the disk. It runs beside reads and
// writes and ends early when ctx does.
func (e *Engine) Compact(ctx context.Context, s Span) error {
	if s.Empty() {
		return nil
	}
	if err := e.db.Compact(ctx, s.Start, s.upper(), false); err != nil {
		return fmt.Errorf("storage: compact: %w", e.check(err))
	}
	e.generation.Add(1)
	e.pool.drain()
	return nil
}

// DiskBytes returns the space that the engine's files take.
func (e *Engine) DiskBytes() int64 { return e.Metrics().DiskBytes }

// Close waits for background work and closes the files. What was not flushed is lost. Every iterator, snapshot and batch
// must have been closed.
func (e *Engine) Close() error {
	e.generation.Add(1)
	e.pool.drain()
	err := e.db.Close()
	e.cache.Unref()
	if err != nil {
		return fmt.Errorf("storage: close: %w", corruptError(err))
	}
	return nil
}

// Metrics are the numbers of an engine that an operator watches.
type Metrics struct {
	DiskBytes          int64 // space that all files take
	MemTableBytes      int64 // not yet flushed or still in use
	CacheBytes         int64 // blocks in memory
	CacheHits          int64
	CacheMisses        int64
	Tables             int64
	ReadAmplification  int   // tables that a seek may have to look at
	CompactionDebt     int64 // bytes that compactions still have to rewrite
	Flushes            int64
	Compactions        int64
	BytesFlushed       int64
	BytesCompacted     int64
	OpenIterators      int64
	ObsoleteTableBytes int64 // of DiskBytes: replaced, about to be deleted or held by iterators and snapshots
}

// Metrics returns the engine's numbers.
func (e *Engine) Metrics() Metrics {
	e.pool.drain() // idle iterators must not be why a replaced table is still there
	m := e.db.Metrics()
	out := Metrics{
		DiskBytes:          int64(m.DiskSpaceUsage()),
		MemTableBytes:      int64(m.MemTable.Size) + int64(m.MemTable.ZombieSize),
		CacheBytes:         m.BlockCache.Size,
		CacheHits:          m.BlockCache.Hits,
		CacheMisses:        m.BlockCache.Misses,
		ReadAmplification:  m.ReadAmp(),
		CompactionDebt:     int64(m.Compact.EstimatedDebt),
		Flushes:            m.Flush.Count,
		Compactions:        m.Compact.Count,
		OpenIterators:      m.TableIters,
		ObsoleteTableBytes: int64(m.Table.Local.ZombieSize + m.Table.Local.ObsoleteSize),
	}
	for i := range m.Levels {
		l := &m.Levels[i]
		out.Tables += l.TablesCount
		out.BytesFlushed += int64(l.TableBytesFlushed)
		out.BytesCompacted += int64(l.TableBytesCompacted)
	}
	return out
}

// logAdapter carries pebble's log lines to slog.
type logAdapter struct{ e *Engine }

// Infof implements pebble.Logger.
func (l logAdapter) Infof(format string, args ...any) {
	if l.e.log.Enabled(context.Background(), slog.LevelDebug) {
		l.e.log.Debug(fmt.Sprintf(format, args...))
	}
}

// Errorf implements pebble.Logger.
func (l logAdapter) Errorf(format string, args ...any) { l.e.log.Warn(fmt.Sprintf(format, args...)) }

// Fatalf implements pebble.Logger: it does not return. A panic here would hide the reason behind a trace.
func (l logAdapter) Fatalf(format string, args ...any) {
	err := &fatalError{text: fmt.Sprintf("storage: "+format, args...)}
	for _, a := range args {
		if cause, ok := a.(error); ok {
			err.cause = cause
		}
	}
	l.e.fatal(corruptError(err))
	select {}
}

// fatalError is why pebble cannot go on.
type fatalError struct {
	text  string
	cause error
}

func (e *fatalError) Error() string { return e.text }
func (e *fatalError) Unwrap() error { return e.cause }
