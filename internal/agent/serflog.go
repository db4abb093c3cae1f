package agent

import (
	"context"
	"log/slog"
	"strings"
)

// serfLog turns the lines of serf and memberlist into records. They hold addresses, names of members and of events, never
// keys or payloads.
type serfLog struct{ log *slog.Logger }

// Write takes one line: date, time, [LEVEL], text.
func (s *serfLog) Write(line []byte) (int, error) {
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
