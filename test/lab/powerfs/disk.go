package powerfs

import (
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Disk is one file system and where it is mounted. Its methods may be called at any time by anybody.
type Disk struct {
	dir string

	mu       sync.Mutex
	server   *fuse.Server
	root     *inode
	known    map[uint64]*inode // to the kernel
	last     uint64            // id
	capacity int64             // bytes
	used     int64             // pages of files that have a name or are open
	delay    time.Duration     // of each sync
	failing  int               // so many syncs to fail

	syncs, failed, full atomic.Int64
}

// New mounts an empty disk of so many bytes on an existing directory.
func New(dir string, capacity int64) (*Disk, error) {
	d := &Disk{dir: dir, last: fuse.FUSE_ROOT_ID, capacity: capacity, root: newInode(fuse.FUSE_ROOT_ID, true, 0o755, time.Now())}
	return d, d.mount()
}

// mount serves the disk anew: nothing that the kernel had kept of it is left.
func (d *Disk) mount() error {
	d.mu.Lock()
	d.known = map[uint64]*inode{fuse.FUSE_ROOT_ID: d.root}
	d.mu.Unlock()
	server, err := fuse.NewServer(&face{RawFileSystem: fuse.NewDefaultRawFileSystem(), d: d}, d.dir, &fuse.MountOptions{
		Name: "powerfs", FsName: "powerfs", MaxWrite: 1 << 20, DisableXAttrs: true, DirectMount: true, IgnoreSecurityLabels: true, EnableLocks: false,
		Logger: log.New(discard{}, "", 0),
	})
	if err != nil {
		return fmt.Errorf("mounting a disk on %s: %w", d.dir, err)
	}
	d.mu.Lock()
	d.server = server
	d.mu.Unlock()
	go server.Serve() // ends with Unmount
	if err := server.WaitMount(); err != nil {
		return fmt.Errorf("mounting a disk on %s: %w", d.dir, err)
	}
	return nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Close unmounts the disk; its content is gone. Nobody may have files open on it any more.
func (d *Disk) Close() error {
	d.mu.Lock()
	server := d.server
	d.server = nil
	d.mu.Unlock()
	if server == nil {
		return nil
	}
	var err error
	for end := time.Now().Add(5 * time.Second); ; {
		if err = server.Unmount(); err == nil {
			server.Wait()
			return nil
		}
		if time.Now().After(end) {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	if out, lazy := exec.Command("umount", "-l", d.dir).CombinedOutput(); lazy != nil {
		return errors.Join(fmt.Errorf("unmounting %s: %w", d.dir, err), fmt.Errorf("%w: %s", lazy, out))
	}
	return nil
}

// Loss is what a loss of power took.
type Loss struct {
	Files, Names int // files with bytes that were not durable, directories with names that were not
}

// Cut takes the power away and gives it back: what was not synced is gone but for what the mode lets by. The processes that had
// files open have to be dead.
func (d *Disk) Cut(mode Mode, rng *rand.Rand) (Loss, error) {
	if err := d.Close(); err != nil {
		return Loss{}, err
	}
	d.mu.Lock()
	var loss Loss
	seen := map[*inode]bool{}
	d.used = 0
	d.cutTree(d.root, mode, rng, seen, &loss)
	d.delay, d.failing = 0, 0
	d.mu.Unlock()
	return loss, d.mount()
}

func (d *Disk) cutTree(n *inode, mode Mode, rng *rand.Rand, seen map[*inode]bool, loss *Loss) {
	n.names++
	if seen[n] {
		return
	}
	seen[n] = true
	lost := n.cut(mode, rng)
	n.lookups, n.opens, n.names = 0, 0, 1
	switch {
	case lost && n.dir:
		loss.Names++
	case lost:
		loss.Files++
	}
	d.used += int64(len(n.pages)) * pageSize
	for _, name := range sortedNames(n.entries) {
		d.cutTree(n.entries[name], mode, rng, seen, loss)
	}
}

// Fill leaves only so many bytes free, until Free is called.
func (d *Disk) Fill(left int64) { d.mu.Lock(); d.capacity = d.used + left; d.mu.Unlock() }

// Free gives the disk so many bytes in all.
func (d *Disk) Free(capacity int64) { d.mu.Lock(); d.capacity = capacity; d.mu.Unlock() }

// Slow makes each sync take so long; zero ends it.
func (d *Disk) Slow(delay time.Duration) { d.mu.Lock(); d.delay = delay; d.mu.Unlock() }

// FailSyncs makes the next n syncs fail with EIO. What they should have made durable is not, and never will be by syncing again.
func (d *Disk) FailSyncs(n int) { d.mu.Lock(); d.failing = n; d.mu.Unlock() }

// Counts returns how many syncs were asked for, how many failed on request, and how many requests met a full disk.
func (d *Disk) Counts() (syncs, failed, full int64) {
	return d.syncs.Load(), d.failed.Load(), d.full.Load()
}

// Used returns how many bytes the files take.
func (d *Disk) Used() int64 { d.mu.Lock(); defer d.mu.Unlock(); return d.used }

// beginSync counts a sync and says how long it takes and whether it fails.
func (d *Disk) beginSync(cancel <-chan struct{}) error {
	d.syncs.Add(1)
	d.mu.Lock()
	delay, fails := d.delay, d.failing > 0
	if fails {
		d.failing--
	}
	d.mu.Unlock()
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-cancel:
			return syscall.EINTR
		}
	}
	if fails {
		d.failed.Add(1)
		return syscall.EIO
	}
	return nil
}
