package catalog

import "holdfast.dev/holdfast/internal/mvcc"

// BelongsTo reports whether all that op may change is of the node named name: the node itself, what is on it, its sessions.
// It must be spelled as it was registered: names that differ in case only are one node, but not one owner. get reads a
// row of SpaceCatalog. The end of a session that does not exist is everybody's. Pairs belong to no node.
func (op *Op) BelongsTo(name string, get func(key []byte) (mvcc.KV, bool, error)) (bool, error) {
	if name == "" || !op.WellFormed() {
		return false, nil
	}
	node := ""
	switch op.Verb.subject() {
	case subjectNode:
		node = op.Node.Name
		if op.Node.ID != "" { // who sets another node's id renames that node
			owner, ok, err := get(rowKey(tableNodeID, fold(op.Node.ID)))
			if err != nil || ok && string(owner.Value) != name {
				return false, err
			}
		}
	case subjectService:
		node = op.Service.Node
	case subjectCheck:
		node = op.Check.Node
	case subjectSession:
		if op.Verb == SessionCreate {
			node = op.Session.Node
			break
		}
		kv, ok, err := get(rowKey(tableSession, op.Session.ID))
		if err != nil || !ok {
			return !ok, err
		}
		s, err := readSession(&kv)
		return err == nil && s.Node == name, err
	}
	if node != name {
		return false, nil
	}
	kv, ok, err := get(rowKey(tableNode, fold(name)))
	if err != nil || !ok {
		return !ok && err == nil, err
	}
	n, err := readNode(&kv)
	return err == nil && n.Name == name, err
}
