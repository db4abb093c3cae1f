//go:build unix

package logs

import (
	"fmt"
	"log/slog"
	"log/syslog"
	"strings"
)

// facilities are syslog's names, as Consul spells them.
func facilities() map[string]syslog.Priority {
	return map[string]syslog.Priority{
		"KERN": syslog.LOG_KERN, "USER": syslog.LOG_USER, "MAIL": syslog.LOG_MAIL, "DAEMON": syslog.LOG_DAEMON, "AUTH": syslog.LOG_AUTH,
		"SYSLOG": syslog.LOG_SYSLOG, "LPR": syslog.LOG_LPR, "NEWS": syslog.LOG_NEWS, "UUCP": syslog.LOG_UUCP, "CRON": syslog.LOG_CRON,
		"AUTHPRIV": syslog.LOG_AUTHPRIV, "FTP": syslog.LOG_FTP, "LOCAL0": syslog.LOG_LOCAL0, "LOCAL1": syslog.LOG_LOCAL1, "LOCAL2": syslog.LOG_LOCAL2,
		"LOCAL3": syslog.LOG_LOCAL3, "LOCAL4": syslog.LOG_LOCAL4, "LOCAL5": syslog.LOG_LOCAL5, "LOCAL6": syslog.LOG_LOCAL6, "LOCAL7": syslog.LOG_LOCAL7,
	}
}

// hostLog is this host's syslog.
type hostLog struct{ *syslog.Writer }

// openSyslog opens the syslog at a unix socket; an empty address is where this host has it.
func openSyslog(facility, tag, address string) (*hostLog, error) {
	f, ok := facilities()[strings.ToUpper(facility)]
	if !ok {
		return nil, fmt.Errorf("syslog facility %q: expected LOCAL0 to LOCAL7, DAEMON, USER, AUTH …", facility)
	}
	var w *syslog.Writer
	var err error
	if address == "" {
		w, err = syslog.New(f|syslog.LOG_INFO, tag)
	} else {
		w, err = syslog.Dial("unixgram", address, f|syslog.LOG_INFO, tag)
	}
	if err != nil {
		return nil, fmt.Errorf("syslog: %w", err)
	}
	return &hostLog{w}, nil
}

// line writes one record; the writer connects again by itself when the daemon was started anew.
func (h *hostLog) line(l slog.Level, text string) error {
	switch {
	case l >= LevelFatal:
		return h.Crit(text)
	case l >= slog.LevelError:
		return h.Err(text)
	case l >= slog.LevelWarn:
		return h.Warning(text)
	case l >= slog.LevelInfo:
		return h.Info(text)
	}
	return h.Debug(text)
}
