package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const tunName = "slow0"

// link says how packets travel in one direction while they take the detour.
type link struct {
	Delay     time.Duration `json:"delay"`
	Jitter    time.Duration `json:"jitter"` // at most so much more, at random for each packet: they overtake each other
	Loss      float64       `json:"loss"`
	Duplicate float64       `json:"duplicate"`
}

// forwarder carries packets between namespaces, late, twice or not at all. In each namespace is a TUN device; a route sends
// what is to be slow there, the forwarder reads it, and writes it to the device of the namespace it is for. (The kernel's own
// netem would do the same where it is built in; this works everywhere and for each direction apart.)
type forwarder struct {
	n       *network
	devices []*os.File
	work    sync.WaitGroup

	mu     sync.Mutex
	links  map[direction]link
	closed bool
}

func newForwarder(n *network) (*forwarder, error) {
	f := &forwarder{n: n, links: map[direction]link{}}
	for i := range n.slots {
		var device *os.File
		err := n.within(i, func() error {
			var err error
			if device, err = openTun(); err != nil {
				return err
			}
			for _, name := range []string{"all", "default", "eth0", tunName} {
				// An answer goes straight while a question came by the detour.
				if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("0"), 0o644); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			err = command("ip", "-n", n.namespace(i), "link", "set", tunName, "up")
		}
		if err != nil {
			f.close()
			return nil, fmt.Errorf("a TUN device for slow links: %w", err)
		}
		f.devices = append(f.devices, device)
		f.work.Go(func() { f.carry(i, device) })
	}
	return f, nil
}

// openTun makes a TUN device in the namespace of the calling thread.
func openTun() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(tunName)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "tun"), nil
}

// set makes a direction slow.
func (f *forwarder) set(d direction, l link) error {
	f.mu.Lock()
	f.links[d] = l
	f.mu.Unlock()
	return f.n.detour(d, true)
}

// heal takes the straight way again; what is under way arrives.
func (f *forwarder) heal(d direction) error { return f.n.detour(d, false) }

// carry reads the packets that leave a slot until its device is closed.
func (f *forwarder) carry(from int, device *os.File) {
	rng := rand.New(rand.NewPCG(uint64(from), uint64(time.Now().UnixNano())))
	buf := make([]byte, 1<<16)
	for {
		n, err := device.Read(buf)
		if err != nil {
			return
		}
		const header = 20
		if n < header || buf[0]>>4 != 4 {
			continue // IPv6's greetings
		}
		to := int(buf[19]) - 1
		if to < 0 || to >= len(f.devices) {
			continue
		}
		f.mu.Lock()
		l := f.links[direction{from, to}]
		f.mu.Unlock()
		if rng.Float64() < l.Loss {
			continue
		}
		packet := append([]byte(nil), buf[:n]...)
		copies := 1
		if rng.Float64() < l.Duplicate {
			copies = 2
		}
		for range copies {
			late := l.Delay
			if l.Jitter > 0 {
				late += time.Duration(rng.Int64N(int64(l.Jitter)))
			}
			time.AfterFunc(late, func() { f.deliver(to, packet) })
		}
	}
}

func (f *forwarder) deliver(to int, packet []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed && to < len(f.devices) {
		_, _ = f.devices[to].Write(packet) // a device that takes no more loses it, as a network does
	}
}

func (f *forwarder) close() {
	f.mu.Lock()
	f.closed = true
	devices := f.devices
	f.mu.Unlock()
	for _, d := range devices {
		d.Close()
	}
	f.work.Wait()
}
