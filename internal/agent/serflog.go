package agent

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
)

// serfLog turns the lines of serf and memberlist into records. They hold addresses, names of members and of events, never
// keys or payloads. memberlist does not wait for its goroutines when it is shut down: what they say then is dropped.
type serfLog struct {
	log *slog.Logger
	off atomic.Bool
}

// Write takes one line: date, time, [LEVEL], text.
func (s *serfLog) Write(line []byte) (int, error) {
	if s.off.Load() {
		return len(line), nil
	}
	text := strings.TrimSpace(string(line))
	level := slog.LevelInfo
	if _, rest, ok := strings.Cut(text, "["); ok {
		if name, after, ok := strings.Cut(rest, "]"); ok {
			switch name {
			case "DEBUG", "TRACE":
				level, text = slog.LevelDebug, after
			case "INFO":
				level, text = slog.LevelInfo, after
			case "WARN":
				level, text = slog.LevelWarn, after
			case "ERR", "ERROR":
				level, text = slog.LevelError, after
			}
		}
	}
	s.log.Log(context.Background(), level, "gossip: "+strings.TrimSpace(text))
	return len(line), nil
}
