package main

// firstDay are the tests of the client's files kv, session, lock, semaphore, txn, status and event: what must always hold.
func firstDay() []string {
	return []string{
		"TestAPI_ClientPutGetDelete", "TestAPI_ClientList_DeleteRecurse", "TestAPI_ClientDeleteCAS",
		"TestAPI_ClientCAS", "TestAPI_ClientWatchGet", "TestAPI_ClientWatchList",
		"TestAPI_ClientKeys_DeleteRecurse", "TestAPI_ClientAcquireRelease", "TestAPI_KVClientTxn",
		"TestAPI_SessionCreateDestroy", "TestAPI_SessionCreateRenewDestroy", "TestAPI_SessionCreateRenewDestroyRenew",
		"TestAPI_SessionCreateDestroyRenewPeriodic", "TestAPI_SessionRenewPeriodic_Cancel", "TestAPI_SessionInfo",
		"TestAPI_SessionInfo_NoChecks", "TestAPI_SessionNode", "TestAPI_SessionList",
		"TestAPI_SessionNodeChecks", "TestAPI_SessionServiceChecks", "TestAPI_LockLockUnlock",
		"TestAPI_LockForceInvalidate", "TestAPI_LockDeleteKey", "TestAPI_LockContend",
		"TestAPI_LockDestroy", "TestAPI_LockConflict", "TestAPI_LockReclaimLock",
		"TestAPI_LockMonitorRetry", "TestAPI_LockOneShot", "TestAPI_SemaphoreAcquireRelease",
		"TestAPI_SemaphoreForceInvalidate", "TestAPI_SemaphoreDeleteKey", "TestAPI_SemaphoreContend",
		"TestAPI_SemaphoreBadLimit", "TestAPI_SemaphoreDestroy", "TestAPI_SemaphoreConflict",
		"TestAPI_SemaphoreMonitorRetry", "TestAPI_SemaphoreOneShot", "TestAPI_ClientTxn",
		"TestAPI_ClientTxnWrite", "TestAPI_StatusLeader", "TestAPI_StatusLeaderWithQueryOptions",
		"TestAPI_StatusPeers", "TestAPI_StatusPeersWithQueryOptions", "TestAPI_StatusLeader_WrongDC",
		"TestAPI_StatusPeers_WrongDC", "TestAPI_EventFireList",
	}
}
