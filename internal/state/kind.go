package state

import "holdfast.dev/holdfast/internal/policy"

// requestKind is the number of a request in the log. Numbers are never changed nor used again.
type requestKind uint8

const (
	kindPut             requestKind = 1
	kindDelete          requestKind = 2
	kindTxn             requestKind = 3
	kindCompact         requestKind = 4
	kindLeaseGrant      requestKind = 5
	kindLeaseRevoke     requestKind = 6
	kindLeaseCheckpoint requestKind = 7
	kindAuthChange      requestKind = 8
	kindAlarmChange     requestKind = 9
	kindMemberPublish   requestKind = 10
	kindRaiseLevel      requestKind = 11
	kindDiscovery       requestKind = 12
	kindEncrypted       requestKind = 13
)

func (*Put) kind() requestKind             { return kindPut }
func (*Delete) kind() requestKind          { return kindDelete }
func (*Txn) kind() requestKind             { return kindTxn }
func (*Compact) kind() requestKind         { return kindCompact }
func (*LeaseGrant) kind() requestKind      { return kindLeaseGrant }
func (*LeaseRevoke) kind() requestKind     { return kindLeaseRevoke }
func (*LeaseCheckpoint) kind() requestKind { return kindLeaseCheckpoint }
func (*AuthChange) kind() requestKind      { return kindAuthChange }
func (*AlarmChange) kind() requestKind     { return kindAlarmChange }
func (*MemberPublish) kind() requestKind   { return kindMemberPublish }
func (*RaiseLevel) kind() requestKind      { return kindRaiseLevel }
func (*Discovery) kind() requestKind       { return kindDiscovery }

// Feature levels. A request may be applied from its level on.
const (
	FirstLevel uint32 = 1
	MaxLevel   uint32 = 2 // the highest level that this build knows

	levelDiscovery uint32 = 2 // the catalog and Consul's key-value pairs
	levelReads     uint32 = 2 // MaxTxnRead and MaxEntryRead
	// EncryptionLevel is the level from which on an encryption configuration may be declared.
	EncryptionLevel uint32 = 2
)

// level returns the feature level from which on k may be applied.
func (k requestKind) level() uint32 {
	switch k {
	case kindDiscovery:
		return levelDiscovery
	case kindEncrypted:
		return EncryptionLevel
	}
	return FirstLevel
}

// RaiseLevel raises the cluster's feature level. It is refused while some member has not published that it knows Level.
type RaiseLevel struct {
	Level uint32
}

// ConfCommand is what the context of raft's configuration change holds. The limits travel in it, so that members with
// different flags decide alike.
type ConfCommand struct {
	Proposal    Proposal
	Who         policy.Principal
	Change      ConfChange
	MaxLearners uint32 // 0: none may be added
	Strict      bool   // refuse what would leave fewer started voters than a quorum
}

// DefaultMaxLearners is etcd's.
const DefaultMaxLearners = 1
