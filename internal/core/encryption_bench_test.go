package core

import (
	"testing"

	"holdfast.dev/holdfast/internal/mvcc"
	"holdfast.dev/holdfast/internal/state"
)

// BenchmarkWithoutEncryption is the hot path of a store that never had an encryption configuration.
func BenchmarkWithoutEncryption(b *testing.B) {
	benchmarkPaths(b, start(b, nil), "/registry/secrets/x/1")
}

// BenchmarkEncryption is the same while one is in force: for a key that it encrypts, and for one that it does not look at.
func BenchmarkEncryption(b *testing.B) {
	for name, key := range map[string]string{"encrypted": "/registry/secrets/x/1", "elsewhere": "/some/other/key/xxxxx"} {
		b.Run(name, func(b *testing.B) {
			m := startEncrypting(b, nil)
			m.declare("gcm:key1", "identity")
			benchmarkPaths(b, m, key)
		})
	}
}

func benchmarkPaths(b *testing.B, m *member, key string) {
	value := make([]byte, 256)
	b.Run("put", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := m.Put(m.ctx, m.anon, &state.Put{Space: mvcc.SpaceEtcd, Key: []byte(key), Value: value}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("range", func(b *testing.B) {
		r := query(key)
		r.Serializable = true
		b.ReportAllocs()
		for b.Loop() {
			if _, err := m.Range(m.ctx, m.anon, r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
