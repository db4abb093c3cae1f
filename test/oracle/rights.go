package main

import (
	"maps"
	"slices"
)

// The words of refusals.
const (
	granted     = ""
	denied      = "etcdserver: permission denied"
	nobodyNamed = "etcdserver: user name is empty"
	badToken    = "etcdserver: invalid auth token"
	oldRevision = "etcdserver: revision of auth store is old"
	noSuchUser  = "etcdserver: user name not found"
)

// refusals are all the words that say "you may not".
var refusals = []string{denied, nobodyNamed, badToken, oldRevision, noSuchUser}

// flavour is what differs between the servers that the model knows.
type flavour struct {
	etcd    bool // the real etcd
	secured bool // holdfast server: without a right there is none, users or not
	names   bool // a certificate's common name is a user
	jwt     bool // tokens are bound to the revision of the user store they were made at
}

// A grant permits reading, writing or both of a range.
type grant struct {
	key, end    string
	read, write bool
}

type user struct {
	pass   string
	noPass bool
	roles  map[string]bool
	born   uint64 // revision of the user store at which it was made or got its password
	life   int    // another one with each creation and password
}

// A token was given to a user.
type token struct {
	text     string
	user     string
	life     int
	revision uint64
	dead     bool
}

// people is the user store.
type people struct {
	flavour
	on       bool
	revision uint64
	users    map[string]*user
	roles    map[string][]grant
	tokens   map[string][]*token // of each user, oldest first
	lives    int
	unsure   bool // the verdict is not one that the rules have
}

func newPeople(f flavour, revision uint64) *people {
	return &people{flavour: f, revision: revision, users: map[string]*user{}, roles: map[string][]grant{}, tokens: map[string][]*token{}}
}

// caller is who asks, as the connection and the metadata say it.
type caller struct {
	cert  string // common name of the certificate; empty: none
	role  string // what it was certified as under holdfast server: admin, client, kms
	token *token // nil: none; one without text that was ever given: garbage
}

func (p *people) admin(c caller) bool { return p.secured && c.role == "admin" }

// identify returns the user that c acts as, and the revision of the user store that this rests on.
func (p *people) identify(c caller) (name string, revision uint64, refusal string) {
	if !p.on {
		return "", 0, granted
	}
	if t := c.token; t != nil {
		if t.dead {
			return "", 0, badToken
		}
		if p.jwt {
			return t.user, t.revision, granted
		}
		return t.user, p.revision, granted
	}
	if p.names && c.cert != "" {
		return c.cert, p.revision, granted
	}
	return "", 0, granted
}

// actor is identify for requests that need a user.
func (p *people) actor(c caller) (u *user, name string, revision uint64, refusal string) {
	if p.secured && c.role == "kms" {
		if _, _, refusal := p.identify(c); refusal != granted {
			return nil, "", 0, refusal
		}
		return nil, "", 0, denied // never a user
	}
	name, revision, refusal = p.identify(c)
	switch {
	case refusal != granted:
		return nil, "", 0, refusal
	case name == "":
		return nil, "", 0, nobodyNamed
	}
	return p.users[name], name, revision, granted
}

// whenOff is the answer while there are no users: etcd's rule is that everybody may do everything.
func (p *people) whenOff() string {
	if p.secured {
		return denied
	}
	return granted
}

// token refusals come before everything else.
func (p *people) checkToken(c caller) string {
	_, _, refusal := p.identify(c)
	return refusal
}

// may decides about all keys of a request: each of them needs a grant. A range without keys proves no right.
func (p *people) may(c caller, write bool, key, end string) string {
	if r := p.checkToken(c); r != granted || p.admin(c) {
		return r
	}
	if !p.on {
		return p.whenOff()
	}
	u, _, revision, refusal := p.actor(c)
	switch {
	case refusal != granted:
		return refusal
	case revision < p.revision:
		return oldRevision
	case u == nil:
		return denied
	case u.roles["root"]:
		return granted
	}
	keys := keysOf(key, end)
	for _, k := range keys {
		if !p.permits(u, write, k) {
			return denied
		}
	}
	if len(keys) == 0 {
		p.unsure = p.etcd // the real etcd sees the bounds, not the keys: it allows what lies inside a grant
		return denied
	}
	return granted
}

// permits decides about one key.
func (p *people) permits(u *user, write bool, k string) bool {
	for role := range u.roles {
		for _, g := range p.roles[role] {
			if within(k, g.key, g.end) && (write && g.write || !write && g.read) {
				return true
			}
		}
	}
	return false
}

// The classes of what is not about keys.
type class int

const (
	forRoot class = iota // users with the role root
	forUser              // every user
	forAll               // everybody who may connect
)

// control decides about what is not about keys.
func (p *people) control(c caller, need class) string {
	if r := p.checkToken(c); r != granted || p.admin(c) {
		return r
	}
	if need == forAll {
		return granted
	}
	if !p.on {
		return p.whenOff()
	}
	u, _, revision, refusal := p.actor(c)
	switch {
	case refusal != granted:
		return refusal
	case p.etcd && need == forUser:
		return granted // whoever names a user, also one that does not exist
	case u == nil:
		return noSuchUser
	case !p.etcd && revision < u.born:
		return oldRevision
	case need == forUser || u.roles["root"]:
		return granted
	}
	return denied
}

// self is control for root, or for the user that it is about.
func (p *people) self(c caller, own func(name string, u *user) bool) string {
	refusal := p.control(c, forRoot)
	if refusal != denied || !p.on {
		return refusal
	}
	if u, name, _, r := p.actor(c); r == granted && u != nil && own(name, u) {
		return granted
	}
	return refusal
}

// superior reports whether c may everything whatever the roles say.
func (p *people) superior(c caller) bool { return p.control(c, forRoot) == granted }

// each decides about single keys, one after the other.
func (p *people) each(c caller, write bool, keys []string) string {
	if p.superior(c) {
		return granted
	}
	for _, k := range keys {
		if r := p.may(c, write, k, ""); r != granted {
			return r
		}
	}
	return granted
}

// Changes of the user store. Each is allowed already; they return the refusal of what makes no sense.

func (p *people) bump() { p.revision++ }

func (p *people) switchOn() string {
	if p.on {
		return granted
	}
	root := p.users["root"]
	switch {
	case root == nil:
		return "etcdserver: root user does not exist"
	case !root.roles["root"]:
		return "etcdserver: root user does not have root role"
	}
	p.on = true
	return granted
}

func (p *people) switchOff() string {
	if p.on {
		p.on = false
		p.bump()
		if !p.jwt {
			for name := range p.tokens {
				p.kill(name)
			}
		}
	}
	return granted
}

// kill ends the tokens of a user. A JWT is not ended: it says a revision.
func (p *people) kill(name string) {
	if p.jwt {
		return
	}
	for _, t := range p.tokens[name] {
		t.dead = true
	}
}

func (p *people) addUser(name, pass string, noPass bool) string {
	if p.users[name] != nil {
		return "etcdserver: user name already exists"
	}
	p.bump()
	p.lives++
	p.users[name] = &user{pass: pass, noPass: noPass, roles: map[string]bool{}, born: p.revision, life: p.lives}
	return granted
}

func (p *people) deleteUser(name string) string {
	switch {
	case p.on && name == "root":
		return "etcdserver: invalid auth management"
	case p.users[name] == nil:
		return noSuchUser
	}
	delete(p.users, name)
	p.kill(name)
	p.bump()
	return granted
}

func (p *people) changePassword(name, pass string) string {
	u := p.users[name]
	if u == nil {
		return noSuchUser
	}
	p.bump()
	p.lives++
	u.pass, u.born, u.life = pass, p.revision, p.lives
	p.kill(name)
	return granted
}

func (p *people) grantRole(name, role string) string {
	u := p.users[name]
	switch {
	case u == nil:
		return noSuchUser
	case role != "root" && p.roles[role] == nil:
		return "etcdserver: role name not found"
	case u.roles[role]:
		return granted
	}
	u.roles[role] = true
	p.bump()
	return granted
}

func (p *people) revokeRole(name, role string) string {
	u := p.users[name]
	switch {
	case p.on && name == "root" && role == "root":
		return "etcdserver: invalid auth management"
	case u == nil:
		return noSuchUser
	case !u.roles[role]:
		return "etcdserver: role is not granted to the user"
	}
	delete(u.roles, role)
	p.bump()
	return granted
}

func (p *people) addRole(role string) string {
	if p.roles[role] != nil {
		return "etcdserver: role name already exists"
	}
	p.roles[role] = []grant{}
	p.bump()
	return granted
}

func (p *people) deleteRole(role string) string {
	switch {
	case p.on && role == "root":
		return "etcdserver: invalid auth management"
	case p.roles[role] == nil:
		return "etcdserver: role name not found"
	}
	delete(p.roles, role)
	for _, u := range p.users {
		delete(u.roles, role)
	}
	p.bump()
	return granted
}

// sameRange finds a grant over the same range. Holdfast has one spelling for the range of one key, etcd has two.
func (p *people) sameRange(grants []grant, key, end string) int {
	plain := func(key, end string) string {
		if !p.etcd && end == key+"\x00" {
			return ""
		}
		return end
	}
	return slices.IndexFunc(grants, func(g grant) bool { return g.key == key && plain(g.key, g.end) == plain(key, end) })
}

func (p *people) permit(role string, g grant) string {
	if p.roles[role] == nil {
		return "etcdserver: role name not found"
	}
	if p.etcd && slices.ContainsFunc(p.roles[role], func(o grant) bool { return o.key == g.key && o.end != g.end }) {
		p.unsure = true // it may not find the grant that this one is in the place of, and keep both
		return granted
	}
	if i := p.sameRange(p.roles[role], g.key, g.end); i >= 0 {
		p.roles[role][i].read, p.roles[role][i].write = g.read, g.write
	} else {
		p.roles[role] = append(p.roles[role], g)
	}
	p.bump()
	return granted
}

func (p *people) forbid(role, key, end string) string {
	if p.roles[role] == nil {
		return "etcdserver: role name not found"
	}
	i := p.sameRange(p.roles[role], key, end)
	if i < 0 {
		return "etcdserver: permission is not granted to the role"
	}
	p.roles[role] = slices.Delete(p.roles[role], i, i+1)
	p.bump()
	return granted
}

// login returns the refusal of a name and a password, and the token that it gives otherwise. Its text is the server's.
func (p *people) login(name, pass string) (*token, string) {
	u := p.users[name]
	switch {
	case !p.on:
		return nil, "etcdserver: authentication is not enabled"
	case name == "":
		return nil, nobodyNamed
	case u != nil && u.noPass && p.etcd:
		return nil, "auth: authentication failed, password was given for no password user"
	case u == nil || u.noPass || u.pass != pass:
		return nil, "etcdserver: authentication failed, invalid user ID or password"
	}
	t := &token{user: name, life: u.life, revision: p.revision}
	p.tokens[name] = append(p.tokens[name], t)
	return t, granted
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
