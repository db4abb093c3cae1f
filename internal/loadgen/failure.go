package loadgen

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// wrongAnswer is an answer that cannot be right. Its text is the kind of the failure.
type wrongAnswer string

func (w wrongAnswer) Error() string { return "wrong answer: " + string(w) }

// errTimeout is what a request ends with that took longer than Options.Timeout.
var errTimeout = errors.New("timeout")

// errNotStarted is what a request of an open loop ends with that could not be started before the end.
var errNotStarted = errors.New("not started: all clients were busy")

// transportWords are what transport errors are told apart by; the rest of their text names addresses.
var transportWords = []string{"connection refused", "connection reset", "broken pipe", "EOF", "handshake", "certificate", "first record does not look like a TLS handshake",
	"cannot assign requested address", "too many open files", "i/o timeout", "GOAWAY", "error reading server preface", "received message larger than max"}

// failureKind returns a short name of err: few different ones, whatever addresses and keys are in it.
func failureKind(err error) string {
	var wrong wrongAnswer
	if errors.As(err, &wrong) || errors.Is(err, errTimeout) || errors.Is(err, errNotStarted) {
		return err.Error()
	}
	st, ok := status.FromError(err)
	if !ok {
		return "other"
	}
	if st.Code() == codes.OK {
		return "other"
	}
	text := st.Message()
	if strings.HasPrefix(text, "etcdserver: ") {
		return fmt.Sprintf("%v: %s", st.Code(), text)
	}
	for _, w := range transportWords {
		if strings.Contains(text, w) {
			return fmt.Sprintf("%v: %s", st.Code(), w)
		}
	}
	return st.Code().String()
}

func sortedFailures(m map[string]*Failure) []Failure {
	var out []Failure
	for _, f := range m {
		out = append(out, *f)
	}
	slices.SortFunc(out, func(a, b Failure) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Kind, b.Kind))
	})
	return out
}
