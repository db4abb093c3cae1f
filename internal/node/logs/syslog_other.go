//go:build !unix

package logs

import (
	"errors"
	"log/slog"
)

type hostLog struct{}

func openSyslog(string, string, string) (*hostLog, error) {
	return nil, errors.New("this system has no syslog")
}

func (*hostLog) line(slog.Level, string) error { return nil }

func (*hostLog) Close() error { return nil }
