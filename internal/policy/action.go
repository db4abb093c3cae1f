package policy

import "fmt"

// Action is something that is asked of the cluster or of one member rather than of keys.
type Action uint8

// The actions. The zero value is none: it is always denied.
const (
	NoAction      Action = iota
	MemberAdd            // add a voter or a learner
	MemberRemove         //
	MemberUpdate         // peer URLs
	MemberPromote        //
	MemberList           //
	Defragment           //
	HashAll              // hash of everything
	HashSpace            // hash of one space (HashKV)
	SnapshotRead         // a copy of the whole etcd space
	MoveLeader           //
	AlarmSet             // raise or lower
	AlarmList            //
	CompactSpace         //
	AuthAdmin            // any change of users, roles and of whether they count; listing them
	AuthStatus           //
	UserRead             // a user's roles; a user may read its own
	RoleRead             // a role's permissions; a user may read those it has
	StatusRead           //
	LeaseCreate          //
	LeaseRenew           //
	LeaseRead            // a lease's time to live
	Downgrade            //
	Authenticate         // trade a password for a token
	HealthRead           //
	numActions
)

// Class is who may do an Action while user authentication is on. While it is off, etcd's rule stands: whoever came in over
// a listener where "auth off = all" holds may do everything, and nobody else.
type Class uint8

// The classes. The zero value denies.
const (
	ClassNone Class = iota
	ClassRoot       // users with the root role
	ClassSelf       // users with the root role, and the user whom it concerns
	ClassUser       // every user that exists
	ClassOpen       // everybody who could be a user: needed before one is known
)

var actions = [numActions]struct {
	name  string
	class Class
}{
	NoAction:      {"nothing", ClassNone},
	MemberAdd:     {"member add", ClassRoot},
	MemberRemove:  {"member remove", ClassRoot},
	MemberUpdate:  {"member update", ClassRoot},
	MemberPromote: {"member promote", ClassRoot},
	MemberList:    {"member list", ClassUser},
	Defragment:    {"defragment", ClassRoot},
	HashAll:       {"hash", ClassRoot},
	HashSpace:     {"hash of a space", ClassRoot},
	SnapshotRead:  {"snapshot", ClassRoot},
	MoveLeader:    {"move leader", ClassRoot},
	AlarmSet:      {"alarm change", ClassRoot},
	AlarmList:     {"alarm list", ClassUser},
	CompactSpace:  {"compact", ClassRoot},
	AuthAdmin:     {"auth change", ClassRoot},
	AuthStatus:    {"auth status", ClassOpen},
	UserRead:      {"user get", ClassSelf},
	RoleRead:      {"role get", ClassSelf},
	StatusRead:    {"status", ClassUser},
	LeaseCreate:   {"lease grant", ClassUser},
	LeaseRenew:    {"lease renew", ClassUser},
	LeaseRead:     {"lease read", ClassUser},
	Downgrade:     {"downgrade", ClassRoot},
	Authenticate:  {"authenticate", ClassOpen},
	HealthRead:    {"health", ClassOpen},
}

// Class returns who may do a; an unknown action is for nobody.
func (a Action) Class() Class {
	if a >= numActions {
		return ClassNone
	}
	return actions[a].class
}

// String names a for logs and the audit record.
func (a Action) String() string {
	if a >= numActions {
		return fmt.Sprintf("action(%d)", uint8(a))
	}
	return actions[a].name
}

// Actions returns every action, for tables and tests.
func Actions() []Action {
	all := make([]Action, 0, numActions-1)
	for a := NoAction + 1; a < numActions; a++ {
		all = append(all, a)
	}
	return all
}
