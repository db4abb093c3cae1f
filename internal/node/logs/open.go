package logs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"holdfast.dev/holdfast/internal/node/config"
)

// ErrRotation is etcd's text for outputs that cannot be rotated.
var ErrRotation = errors.New("--log-outputs requires a single file path when --log-rotate-config-json is defined")

// Log is an open log.
type Log struct {
	*slog.Logger
	level   *slog.LevelVar
	closers []io.Closer
}

// SetLevel changes from which level on records are written: debug, info, warn or error.
func (l *Log) SetLevel(name string) error {
	level, err := parseLevel(name)
	if err == nil {
		l.level.Set(level)
	}
	return err
}

// Close closes the files.
func (l *Log) Close() error {
	var err error
	for _, c := range l.closers {
		err = errors.Join(err, c.Close())
	}
	return err
}

// syslogTag is the program's name in syslog's lines: who filters for Consul's finds its agent.
const syslogTag = "consul"

// Streams are the standard streams and the clock, as a process has them.
type Streams struct {
	Stdout, Stderr io.Writer
	Now            func() time.Time // for the names and ages of rotated files
	// SyslogSocket is the unix socket of the syslog daemon; empty: where this host has it.
	SyslogSocket string
}

// Open opens the log as c asks.
func Open(c config.Log, s Streams) (*Log, error) {
	var st style
	switch c.Format {
	case "json", "":
		st = styleJSON
	case "console":
		st = styleConsole
	case "text":
		st = styleText
	default:
		return nil, fmt.Errorf("unknown log format: %s, supported values json, console", c.Format)
	}
	l := &Log{level: new(slog.LevelVar)}
	if err := l.SetLevel(c.Level); err != nil {
		return nil, err
	}
	w, err := l.open(c, s)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	h := &handler{style: st, level: l.level, out: &output{w: w}}
	if c.Syslog != "" {
		if h.syslog, err = openSyslog(c.Syslog, syslogTag, s.SyslogSocket); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.closers = append(l.closers, h.syslog)
	}
	l.Logger = slog.New(h)
	return l, nil
}

func (l *Log) open(c config.Log, s Streams) (io.Writer, error) {
	outputs := slices.Clone(c.Outputs)
	if len(outputs) == 0 {
		outputs = []string{"default"}
	}
	if len(outputs) > 1 && slices.Contains(outputs, "default") {
		return nil, fmt.Errorf("multi logoutput for %q is not supported yet", "default")
	}
	if slices.Contains(outputs, "/dev/null") {
		return io.Discard, nil
	}
	slices.Sort(outputs)
	outputs = slices.Compact(outputs)
	files := slices.DeleteFunc(slices.Clone(outputs), func(o string) bool { return o == "default" || o == "stderr" || o == "stdout" })
	rotation, err := parseRotation(c)
	if err != nil {
		return nil, err
	}
	if c.Rotate && len(files) != 1 {
		return nil, ErrRotation
	}
	var writers []io.Writer
	for _, o := range outputs {
		switch o {
		case "default", "stderr":
			writers = append(writers, s.Stderr)
		case "stdout":
			writers = append(writers, s.Stdout)
		case "systemd/journal":
			return nil, errors.New("log output systemd/journal is not in this build: a unit's stderr reaches the journal by itself (use --log-outputs=stderr)")
		default:
			var f io.WriteCloser
			if c.Rotate {
				f, err = openRotating(filepath.Clean(o), rotation, s.Now)
			} else {
				f, err = os.OpenFile(o, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			}
			if err != nil {
				return nil, fmt.Errorf("opening the log: %w", err)
			}
			l.closers = append(l.closers, f)
			writers = append(writers, f)
		}
	}
	if len(writers) == 1 {
		return writers[0], nil
	}
	return io.MultiWriter(writers...), nil
}

func parseLevel(s string) (slog.Level, error) {
	switch s {
	case "debug":
		return slog.LevelDebug, nil
	case "info", "":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error", "dpanic", "panic":
		return slog.LevelError, nil
	case "fatal":
		return LevelFatal, nil
	}
	return 0, fmt.Errorf("unknown log level %q: debug, info, warn, error, panic or fatal", s)
}

// rotation is etcd's rotation object.
type rotation struct {
	MaxSize    int  `json:"maxsize"` // megabytes
	MaxAge     int  `json:"maxage"`  // days
	MaxBackups int  `json:"maxbackups"`
	LocalTime  bool `json:"localtime"`
	Compress   bool `json:"compress"`
}

func parseRotation(c config.Log) (rotation, error) {
	var r rotation
	if !c.Rotate {
		return r, nil
	}
	err := json.Unmarshal([]byte(c.Rotation), &r)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return r, fmt.Errorf("improperly formatted log rotation config: %w", err)
	case errors.As(err, &kind):
		return r, fmt.Errorf("invalid log rotation config: %w", err)
	case err != nil:
		return r, fmt.Errorf("fail to unmarshal log rotation config: %w", err)
	}
	if r.MaxSize <= 0 {
		r.MaxSize = 100
	}
	return r, nil
}
