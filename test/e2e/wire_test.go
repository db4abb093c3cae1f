package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a raw capture of what passes over loopback from or to some ports: payloads of TCP and UDP, as they are on the wire.
type wire struct {
	t       *testing.T
	fd      int
	ports   map[uint16]bool
	path    string
	out     *bufio.Writer
	file    *os.File
	stop    chan struct{}
	done    sync.WaitGroup
	packets int
	bytes   int64
	err     error
}

// record is what is kept of a packet: one way of one connection, and the length of the payload that follows.
type wireRecord struct {
	Proto    uint8
	From, To uint16
	Length   uint32
}

func hostToNet(v uint16) uint16 { return v<<8 | v>>8 }

// listenOnWire starts a capture; nil if this process may not.
func listenOnWire(t *testing.T, ports ...int) *wire {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(hostToNet(unix.ETH_P_IP)))
	if errors.Is(err, unix.EPERM) {
		t.Log("no packet capture: it needs root")
		return nil
	}
	check(t, err)
	lo, err := net.InterfaceByName("lo")
	check(t, err)
	check(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: hostToNet(unix.ETH_P_IP), Ifindex: lo.Index}))
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 512<<20); err != nil {
		t.Logf("a small buffer for captured packets: %v", err)
	}
	check(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	w := &wire{t: t, fd: fd, ports: map[uint16]bool{}, path: filepath.Join(t.TempDir(), "packets"), stop: make(chan struct{})}
	for _, p := range ports {
		w.ports[uint16(p)] = true
	}
	w.file, err = os.Create(w.path)
	check(t, err)
	w.out = bufio.NewWriterSize(w.file, 1<<20)
	w.done.Go(func() { w.err = w.run(w.stop) })
	t.Cleanup(func() {
		select {
		case <-w.stop:
		default:
			close(w.stop)
		}
		w.done.Wait()
		_ = unix.Close(fd)
		_ = w.file.Close()
	})
	return w
}

func (w *wire) run(stop <-chan struct{}) error {
	buf := make([]byte, 1<<18)
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue // loopback shows each packet twice
		}
		if err := w.take(buf[:n]); err != nil {
			return err
		}
	}
}

// take keeps the payload of one frame: Ethernet, IPv4, TCP or UDP.
func (w *wire) take(b []byte) error {
	if len(b) < 14+20 || b[14]>>4 != 4 {
		return nil
	}
	ip := b[14:]
	head, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if total == 0 || total > len(ip) { // a large one that the kernel has put together
		total = len(ip)
	}
	if total < head+8 {
		return nil
	}
	r, payload := wireRecord{Proto: ip[9]}, ip[head:total]
	r.From, r.To = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	if !w.ports[r.From] && !w.ports[r.To] {
		return nil
	}
	skip := 8
	if r.Proto == unix.IPPROTO_TCP && len(payload) >= 20 {
		skip = int(payload[12]>>4) * 4
	}
	payload = payload[min(skip, len(payload)):]
	if len(payload) == 0 {
		return nil
	}
	w.packets++
	w.bytes += int64(len(payload))
	r.Length = uint32(len(payload))
	if err := binary.Write(w.out, binary.BigEndian, r); err != nil {
		return err
	}
	_, err := w.out.Write(payload)
	return err
}

// control sends text in the clear to one of the ports, so that a capture that sees nothing is found out.
func (w *wire) control(port int, text string) {
	w.t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	check(w.t, err)
	for _, half := range []string{text[:len(text)/2], text[len(text)/2:]} { // in two packets
		_, err = io.WriteString(c, half)
		check(w.t, err)
		wait(context.Background(), 20*time.Millisecond)
	}
	check(w.t, c.Close())
	wait(context.Background(), 500*time.Millisecond)
}

// search ends the capture, looks for the needles in it, also across packets of one connection, and returns how often each was found, and how many packets the kernel could not hand over.
func (w *wire) search(needles map[string][]byte) (hits map[string]int, lost int) {
	w.t.Helper()
	stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	check(w.t, err)
	close(w.stop)
	w.done.Wait()
	check(w.t, errors.Join(w.err, w.out.Flush()))
	f, err := os.Open(w.path)
	check(w.t, err)
	defer f.Close()
	s := newSearcher(needles)
	in := bufio.NewReaderSize(f, 1<<20)
	before := map[wireRecord][]byte{}
	for {
		var r wireRecord
		if err := binary.Read(in, binary.BigEndian, &r); err != nil {
			break // its end, or a record that is being written
		}
		data := make([]byte, r.Length)
		if _, err := io.ReadFull(in, data); err != nil {
			break
		}
		r.Length = 0
		tail := before[r]
		data = append(tail[:len(tail):len(tail)], data...)
		s.look(data, len(tail))
		before[r] = append([]byte(nil), data[max(0, len(data)-s.longest):]...)
	}
	return s.hits, int(stats.Drops)
}

// searcher looks for many needles at once.
type searcher struct {
	first   [1 << 16]bool
	byHead  map[uint32][]string
	needles map[string][]byte
	longest int
	hits    map[string]int
}

func newSearcher(needles map[string][]byte) *searcher {
	s := &searcher{byHead: map[uint32][]string{}, needles: needles, hits: map[string]int{}}
	for name, b := range needles {
		s.first[binary.BigEndian.Uint16(b)] = true
		head := binary.BigEndian.Uint32(b)
		s.byHead[head] = append(s.byHead[head], name)
		s.longest = max(s.longest, len(b))
	}
	return s
}

// look counts the needles of data that end after its first old bytes.
func (s *searcher) look(data []byte, old int) {
	for i := 0; i+4 <= len(data); i++ {
		if !s.first[uint16(data[i])<<8|uint16(data[i+1])] {
			continue
		}
		for _, name := range s.byHead[binary.BigEndian.Uint32(data[i:])] {
			if b := s.needles[name]; i+len(b) > old && i+len(b) <= len(data) && string(data[i:i+len(b)]) == string(b) {
				s.hits[name]++
			}
		}
	}
}

// givesNoCore wants a running process to leave no core file.
func givesNoCore(t *testing.T, p *process) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.cmd.Process.Pid))
	check(t, err)
	for line := range strings.Lines(string(data)) {
		var soft string
		if n, _ := fmt.Sscanf(line, "Max core file size %s", &soft); n == 1 && soft != "0" {
			t.Errorf("%v may leave a core file: %s", p.cmd.Args[1:3], line)
		}
	}
}
