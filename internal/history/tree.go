package history

// A tree is an immutable sorted map from keys to KVs: changing it makes a new one that shares what did not change, so that
// the keyspace of every revision can be kept. It is a treap whose priorities are hashes of the keys.
type tree struct {
	kv          *KV
	priority    uint32
	size        int32
	left, right *tree
}

func treeSize(t *tree) int32 {
	if t == nil {
		return 0
	}
	return t.size
}

// with returns t with other branches.
func (t *tree) with(left, right *tree) *tree {
	return &tree{t.kv, t.priority, 1 + treeSize(left) + treeSize(right), left, right}
}

// hash64 is FNV-1a, started with a seed.
func hash64(seed uint64, text string) uint64 {
	h := seed ^ 14695981039346656037
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * 1099511628211
	}
	return h
}

// mixed spreads a number over all bits.
func mixed(h uint64) uint64 {
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}

func (t *tree) get(key string) *KV {
	for t != nil {
		switch {
		case key < t.kv.Key:
			t = t.left
		case key > t.kv.Key:
			t = t.right
		default:
			return t.kv
		}
	}
	return nil
}

func (t *tree) put(kv *KV) *tree {
	if t == nil {
		return &tree{kv: kv, priority: uint32(mixed(hash64(0, kv.Key))), size: 1}
	}
	switch {
	case kv.Key < t.kv.Key:
		left := t.left.put(kv)
		if left.priority > t.priority {
			return left.with(left.left, t.with(left.right, t.right))
		}
		return t.with(left, t.right)
	case kv.Key > t.kv.Key:
		right := t.right.put(kv)
		if right.priority > t.priority {
			return right.with(t.with(t.left, right.left), right.right)
		}
		return t.with(t.left, right)
	}
	return &tree{kv, t.priority, t.size, t.left, t.right}
}

// remove takes out a key that is there.
func (t *tree) remove(key string) *tree {
	switch {
	case key < t.kv.Key:
		return t.with(t.left.remove(key), t.right)
	case key > t.kv.Key:
		return t.with(t.left, t.right.remove(key))
	}
	return merged(t.left, t.right)
}

func merged(a, b *tree) *tree {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.priority > b.priority:
		return a.with(a.left, merged(a.right, b))
	}
	return b.with(merged(a, b.left), b.right)
}

// below counts the keys before key.
func (t *tree) below(key string) (n int32) {
	for t != nil {
		if t.kv.Key < key {
			n += 1 + treeSize(t.left)
			t = t.right
		} else {
			t = t.left
		}
	}
	return n
}

// each calls f with the keys in the range, in order, until f returns false; it reports whether f never did.
func (t *tree) each(key, end string, f func(*KV) bool) bool {
	if end == "" {
		kv := t.get(key)
		return kv == nil || f(kv)
	}
	return t.walk(key, end, f)
}

func (t *tree) walk(key, end string, f func(*KV) bool) bool {
	if t == nil {
		return true
	}
	if t.kv.Key >= key && !t.left.walk(key, end, f) {
		return false
	}
	if inRange(t.kv.Key, key, end) && !f(t.kv) {
		return false
	}
	return !beyond(t.kv.Key, end) && t.right.walk(key, end, f) || beyond(t.kv.Key, end)
}

// count counts the keys in the range.
func (t *tree) count(key, end string) int64 {
	switch end {
	case "":
		if t.get(key) == nil {
			return 0
		}
		return 1
	case "\x00":
		return int64(treeSize(t) - t.below(key))
	}
	return int64(max(t.below(end)-t.below(key), 0))
}

// inRange reports whether a key is in the range of a request.
func inRange(k, key, end string) bool {
	switch end {
	case "":
		return k == key
	case "\x00":
		return k >= key
	}
	return k >= key && k < end
}

func beyond(k, end string) bool { return end != "\x00" && k >= end }
