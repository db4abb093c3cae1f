// Package archtest holds the house's rules as tests: who may import whom, where each engine has its door, and the
// conventions of docs/ARCHITECTURE.md that a parser can see.
//
// Job: fail with the rule and its reason when the code leaves the plan. Non-job: style that gofmt, vet and staticcheck
// already judge. A rule that turns out wrong is changed here, with its reason, in the commit that needs the change.
package archtest
