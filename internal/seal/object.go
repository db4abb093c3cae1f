package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Format 1: header, then Cobblestone-256 of c2sp.org/chunked-encryption with the header and the place as context.
const (
	chunkSize   = 16 << 10
	sealedChunk = chunkSize + tagSize
	maxChunks   = 1 << 38

	cobblestoneLabel = "c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM"

	// Chunks that are read or written in one call to the file below.
	batchChunks = 4
)

// chunkKey is the key of one Cobblestone message. It is safe for concurrent use.
type chunkKey struct {
	aead cipher.AEAD
	base [nonceSize]byte
}

// newChunkKey derives the key of a message and the commitment that its ciphertext carries.
func newChunkKey(inputKey, salt, context []byte) (*chunkKey, []byte, error) {
	if len(inputKey) != keySize || len(salt) != saltSize {
		return nil, nil, fmt.Errorf("a key of %d bytes with a salt of %d", len(inputKey), len(salt))
	}
	key, base, commitment, err := fileKeys(inputKey, cobblestoneLabel, salt, context, nonceSize)
	if err != nil {
		return nil, nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, nil, err
	}
	return &chunkKey{aead: aead, base: [nonceSize]byte(base)}, commitment, nil
}

// nonce sets n to the nonce of chunk i.
func (k *chunkKey) nonce(n *[nonceSize]byte, i int64) {
	*n = k.base
	for j := 0; j < 5; j++ {
		n[nonceSize-1-j] ^= byte(i >> (8 * j))
	}
}

// plainSize returns the length of the message whose chunks fill n bytes.
func plainSize(n int64) (int64, bool) {
	if n < tagSize {
		return 0, false
	}
	k, r := n/sealedChunk, n%sealedChunk
	if r < tagSize || k >= maxChunks {
		return 0, false
	}
	return k*chunkSize + r - tagSize, true
}

// scratch is what reading chunks needs besides the caller's buffer.
type scratch struct {
	buf   [batchChunks * sealedChunk]byte
	nonce [nonceSize]byte
}

// scratchPool lends scratch space to readers.
type scratchPool struct{ pool sync.Pool }

func (p *scratchPool) get() *scratch {
	if s, ok := p.pool.Get().(*scratch); ok {
		return s
	}
	return new(scratch)
}

func (p *scratchPool) put(s *scratch) { p.pool.Put(s) }

// chunkReader reads a Cobblestone message at random. It is safe for concurrent use if src is.
type chunkReader struct {
	src   io.ReaderAt
	path  string // for errors
	key   *chunkKey
	start int64 // where chunk 0 begins in src
	size  int64 // of the plaintext, authenticated
	pool  *scratchPool
}

// newChunkReader authenticates the length of the message that fills src from start to physical: it opens the last chunk.
func newChunkReader(src io.ReaderAt, path string, key *chunkKey, start, physical int64, pool *scratchPool) (*chunkReader, error) {
	size, ok := plainSize(physical - start)
	if !ok {
		return nil, damaged(ErrCorrupt, path, physical, "it is truncated, or was never finished")
	}
	r := &chunkReader{src: src, path: path, key: key, start: start, size: size, pool: pool}
	s := pool.get()
	defer pool.put(s)
	last := size / chunkSize
	sealed := s.buf[:size-last*chunkSize+tagSize]
	if err := r.fetch(sealed, last); err != nil {
		return nil, err
	}
	_, err := r.open(s, sealed[:0], sealed, last)
	return r, err
}

// fetch reads the sealed bytes from chunk i on.
func (r *chunkReader) fetch(sealed []byte, i int64) error {
	off := r.start + i*sealedChunk
	n, err := r.src.ReadAt(sealed, off)
	if n == len(sealed) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged(ErrCorrupt, r.path, off+int64(n), "it ends early")
	}
	return fmt.Errorf("read %s: %w", r.path, err)
}

// open appends the plaintext of sealed, which is chunk i, to dst.
func (r *chunkReader) open(s *scratch, dst, sealed []byte, i int64) ([]byte, error) {
	r.key.nonce(&s.nonce, i)
	plain, err := r.key.aead.Open(dst, s.nonce[:], sealed, nil)
	if err != nil {
		return nil, damaged(ErrTampered, r.path, r.start+i*sealedChunk, "chunk %d does not authenticate", i)
	}
	return plain, nil
}

// ReadAt reads authenticated plaintext. On an error other than io.EOF nothing in p is to be used.
func (r *chunkReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s: negative offset", r.path)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= r.size {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), r.size-off))
	s := r.pool.get()
	defer r.pool.put(s)
	for done := 0; done < want; {
		at := off + int64(done)
		first, last := at/chunkSize, (off+int64(want)-1)/chunkSize
		count := min(last-first+1, batchChunks)
		from := first * chunkSize
		plain := min(count*chunkSize, r.size-from) // plaintext bytes of these chunks
		sealed := s.buf[:plain+count*tagSize]
		if err := r.fetch(sealed, first); err != nil {
			return 0, err
		}
		for i := first; i < first+count; i++ {
			n := int(min(chunkSize, r.size-i*chunkSize))
			chunk := sealed[:n+tagSize]
			sealed = sealed[n+tagSize:]
			skip := int(off + int64(done) - i*chunkSize)
			if skip == 0 && want-done >= n {
				if _, err := r.open(s, p[done:done:done+n], chunk, i); err != nil {
					return 0, err
				}
				done += n
				continue
			}
			body, err := r.open(s, chunk[:0], chunk, i)
			if err != nil {
				return 0, err
			}
			done += copy(p[done:want], body[skip:])
		}
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// verify opens every chunk; pace is told how many bytes come next.
func (r *chunkReader) verify(pace func(int) error) error {
	s := r.pool.get()
	defer r.pool.put(s)
	for i := int64(0); i <= r.size/chunkSize; i++ {
		sealed := s.buf[:min(chunkSize, r.size-i*chunkSize)+tagSize]
		if err := pace(len(sealed)); err != nil {
			return err
		}
		if err := r.fetch(sealed, i); err != nil {
			return err
		}
		if _, err := r.open(s, sealed[:0], sealed, i); err != nil {
			return err
		}
	}
	return nil
}

// openPreamble reads and checks what every sealed file starts with, up to the place where the key material of its
// format is derived.
func openPreamble(ring *Keyring, src io.ReaderAt, path string, format uint8) (h header, preamble, classKey []byte, err error) {
	preamble = make([]byte, preambleSize)
	n, err := src.ReadAt(preamble, 0)
	if n < preambleSize {
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return h, nil, nil, fmt.Errorf("read %s: %w", path, err)
		}
		return h, nil, nil, damaged(ErrCorrupt, path, int64(n), "it is truncated, or was never finished")
	}
	if h, err = parseHeader(path, preamble); err != nil {
		return h, nil, nil, err
	}
	if h.format != format {
		return h, nil, nil, damaged(ErrTampered, path, 8, "it has format %d where format %d belongs", h.format, format)
	}
	classKey, err = ring.classKey(path, h)
	return h, preamble, classKey, err
}

func checkCommitment(path string, got, want []byte) error {
	if subtle.ConstantTimeCompare(got, want) != 1 {
		return damaged(ErrTampered, path, headerSize+saltSize, "it was sealed under another key or for another name, or its header was changed")
	}
	return nil
}

// openObject opens the format 1 file f, which is at path and was sealed for place and class c.
func openObject(ring *Keyring, f vfs.File, path, place string, c class) (*chunkReader, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	h, preamble, classKey, err := openPreamble(ring, f, path, formatObject)
	if err != nil {
		return nil, err
	}
	if h.class != c {
		return nil, damaged(ErrTampered, path, 9, "it has class %s where class %s belongs", h.class.label(), c.label())
	}
	salt := preamble[headerSize : headerSize+saltSize]
	key, commitment, err := newChunkKey(classKey, salt, sealContext(preamble, place))
	if err != nil {
		return nil, err
	}
	if err := checkCommitment(path, commitment, preamble[headerSize+saltSize:]); err != nil {
		return nil, err
	}
	if err := ring.checkSequence(path, h.number); err != nil {
		return nil, err
	}
	return newChunkReader(f, path, key, preambleSize, info.Size(), &ring.scratch)
}

// sealContext binds a file's key to its header and place.
func sealContext(preamble []byte, place string) []byte {
	return append(append(make([]byte, 0, headerSize+len(place)), preamble[:headerSize]...), place...)
}

// objectWriter seals one write-once file. It belongs to one goroutine. Its key is used for this file only, so that
// counting nonces from zero is safe; once sealed it takes no more bytes.
type objectWriter struct {
	file  vfs.File
	path  string
	key   *chunkKey
	plain []byte // less than a chunk, not yet sealed
	out   []byte // sealed, not yet written
	index int64  // chunks sealed
	size  int64  // of the plaintext
	nonce [nonceSize]byte
	done  bool  // the last chunk is sealed
	err   error // the first failure; final
}

var errSealed = errors.New("the file is sealed: it was synced or closed, and takes no more bytes")

// newObjectWriter starts a format 1 file in f, an empty file.
func newObjectWriter(ring *Keyring, f vfs.File, path, place string, c class) (*objectWriter, error) {
	preamble := ring.newHeader(formatObject, c, 0).encode()
	salt := freshSalt()
	h, err := parseHeader(path, preamble)
	if err != nil {
		return nil, err
	}
	classKey, err := ring.classKey(path, h)
	if err != nil {
		return nil, err
	}
	key, commitment, err := newChunkKey(classKey, salt[:], sealContext(preamble, place))
	if err != nil {
		return nil, err
	}
	w := &objectWriter{file: f, path: path, key: key, plain: make([]byte, 0, chunkSize)}
	w.out = make([]byte, 0, preambleSize+batchChunks*sealedChunk)
	w.out = append(append(append(w.out, preamble...), salt[:]...), commitment...)
	return w, nil
}

func (w *objectWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.done {
		return 0, fmt.Errorf("write %s: %w", w.path, errSealed)
	}
	for n := 0; n < len(p); {
		if len(w.plain) == 0 && len(p)-n >= chunkSize {
			w.sealChunk(p[n : n+chunkSize])
			n += chunkSize
		} else {
			take := min(chunkSize-len(w.plain), len(p)-n)
			w.plain = append(w.plain, p[n:n+take]...)
			n += take
			if len(w.plain) == chunkSize {
				w.sealChunk(w.plain)
				w.plain = w.plain[:0]
			}
		}
		if len(w.out)+sealedChunk > cap(w.out) {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	w.size += int64(len(p))
	return len(p), nil
}

func (w *objectWriter) sealChunk(plain []byte) {
	if w.index >= maxChunks && w.err == nil {
		w.err = fmt.Errorf("write %s: the file is too large", w.path)
	}
	w.key.nonce(&w.nonce, w.index)
	w.out = w.key.aead.Seal(w.out, w.nonce[:], plain, nil)
	w.index++
}

// flush hands sealed chunks to the file below.
func (w *objectWriter) flush() error {
	if w.err == nil && len(w.out) > 0 {
		_, w.err = w.file.Write(w.out)
		w.out = w.out[:0]
	}
	return w.err
}

// seal writes the last, short chunk.
func (w *objectWriter) seal() error {
	if w.err != nil || w.done {
		return w.err
	}
	w.done = true
	w.sealChunk(w.plain)
	clear(w.plain[:cap(w.plain)])
	w.plain = nil
	return w.flush()
}

// sync seals the file and makes it durable by durable, Sync or SyncData of the file below.
func (w *objectWriter) sync(durable func() error) error {
	if err := w.seal(); err != nil {
		return err
	}
	if err := durable(); err != nil {
		w.err = err
	}
	return w.err
}

// close seals and closes the file.
func (w *objectWriter) close() error { return errors.Join(w.seal(), w.file.Close()) }
