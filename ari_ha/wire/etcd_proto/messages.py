"""etcd's v3 messages and methods. Made by tools/generate-etcd-proto: do not edit."""

from google.protobuf import descriptor_pool, message_factory

_FILES = (
    b'\n\nmvcc.proto\x12\x06mvccpb"\xae\x01\n\x08KeyValue\x12\x10\n\x03key\x18\x01 \x01(\x0cR\x03key\x12\'\n\x0fcreat'
    b'e_revision\x18\x02 \x01(\x03R\x0ecreateRevision\x12!\n\x0cmod_revision\x18\x03 \x01(\x03R\x0bmodR'
    b'evision\x12\x18\n\x07version\x18\x04 \x01(\x03R\x07version\x12\x14\n\x05value\x18\x05 \x01(\x0cR\x05value\x12\x14\n\x05l'
    b'ease\x18\x06 \x01(\x03R\x05lease"\xa3\x01\n\x05Event\x12+\n\x04type\x18\x01 \x01(\x0e2\x17.mvccpb.Event.Eve'
    b'ntTypeR\x04type\x12 \n\x02kv\x18\x02 \x01(\x0b2\x10.mvccpb.KeyValueR\x02kv\x12)\n\x07prev_kv\x18\x03 '
    b'\x01(\x0b2\x10.mvccpb.KeyValueR\x06prevKv" \n\tEventType\x12\x07\n\x03PUT\x10\x00\x12\n\n\x06DELET'
    b'E\x10\x01b\x06proto3',
    b'\n\netcd.proto\x12\x0cetcdserverpb\x1a\nmvcc.proto"\x85\x01\n\x0eResponseHeader\x12\x1d\n'
    b'\ncluster_id\x18\x01 \x01(\x04R\tclusterId\x12\x1b\n\tmember_id\x18\x02 \x01(\x04R\x08memberId\x12\x1a\n'
    b'\x08revision\x18\x03 \x01(\x03R\x08revision\x12\x1b\n\traft_term\x18\x04 \x01(\x04R\x08raftTerm"\xcf\x01\n\x0cR'
    b'angeRequest\x12\x10\n\x03key\x18\x01 \x01(\x0cR\x03key\x12\x1b\n\trange_end\x18\x02 \x01(\x0cR\x08rangeEnd\x12\x14'
    b'\n\x05limit\x18\x03 \x01(\x03R\x05limit\x12\x1a\n\x08revision\x18\x04 \x01(\x03R\x08revision\x12"\n\x0cserializ'
    b'able\x18\x07 \x01(\x08R\x0cserializable\x12\x1b\n\tkeys_only\x18\x08 \x01(\x08R\x08keysOnly\x12\x1d\n\ncou'
    b'nt_only\x18\t \x01(\x08R\tcountOnly"\x93\x01\n\rRangeResponse\x124\n\x06header\x18\x01 \x01(\x0b2\x1c'
    b'.etcdserverpb.ResponseHeaderR\x06header\x12"\n\x03kvs\x18\x02 \x03(\x0b2\x10.mvccpb.K'
    b'eyValueR\x03kvs\x12\x12\n\x04more\x18\x03 \x01(\x08R\x04more\x12\x14\n\x05count\x18\x04 \x01(\x03R\x05count"c\n\nPu'
    b'tRequest\x12\x10\n\x03key\x18\x01 \x01(\x0cR\x03key\x12\x14\n\x05value\x18\x02 \x01(\x0cR\x05value\x12\x14\n\x05lease\x18\x03 '
    b'\x01(\x03R\x05lease\x12\x17\n\x07prev_kv\x18\x04 \x01(\x08R\x06prevKv"n\n\x0bPutResponse\x124\n\x06header'
    b'\x18\x01 \x01(\x0b2\x1c.etcdserverpb.ResponseHeaderR\x06header\x12)\n\x07prev_kv\x18\x02 \x01('
    b'\x0b2\x10.mvccpb.KeyValueR\x06prevKv"\\\n\x12DeleteRangeRequest\x12\x10\n\x03key\x18\x01 \x01'
    b'(\x0cR\x03key\x12\x1b\n\trange_end\x18\x02 \x01(\x0cR\x08rangeEnd\x12\x17\n\x07prev_kv\x18\x03 \x01(\x08R\x06prevK'
    b'v"\x92\x01\n\x13DeleteRangeResponse\x124\n\x06header\x18\x01 \x01(\x0b2\x1c.etcdserverpb.Res'
    b'ponseHeaderR\x06header\x12\x18\n\x07deleted\x18\x02 \x01(\x03R\x07deleted\x12+\n\x08prev_kvs\x18\x03 '
    b'\x03(\x0b2\x10.mvccpb.KeyValueR\x07prevKvs"\xa9\x02\n\tRequestOp\x12A\n\rrequest_rang'
    b'e\x18\x01 \x01(\x0b2\x1a.etcdserverpb.RangeRequestH\x00R\x0crequestRange\x12;\n\x0breque'
    b'st_put\x18\x02 \x01(\x0b2\x18.etcdserverpb.PutRequestH\x00R\nrequestPut\x12T\n\x14requ'
    b'est_delete_range\x18\x03 \x01(\x0b2 .etcdserverpb.DeleteRangeRequestH\x00R\x12'
    b'requestDeleteRange\x12;\n\x0brequest_txn\x18\x04 \x01(\x0b2\x18.etcdserverpb.TxnRe'
    b'questH\x00R\nrequestTxnB\t\n\x07request"\xb7\x02\n\nResponseOp\x12D\n\x0eresponse_ra'
    b'nge\x18\x01 \x01(\x0b2\x1b.etcdserverpb.RangeResponseH\x00R\rresponseRange\x12>\n\x0cr'
    b'esponse_put\x18\x02 \x01(\x0b2\x19.etcdserverpb.PutResponseH\x00R\x0bresponsePut\x12'
    b'W\n\x15response_delete_range\x18\x03 \x01(\x0b2!.etcdserverpb.DeleteRangeRes'
    b'ponseH\x00R\x13responseDeleteRange\x12>\n\x0cresponse_txn\x18\x04 \x01(\x0b2\x19.etcdser'
    b'verpb.TxnResponseH\x00R\x0bresponseTxnB\n\n\x08response"\xe9\x03\n\x07Compare\x12;\n\x06'
    b'result\x18\x01 \x01(\x0e2#.etcdserverpb.Compare.CompareResultR\x06result\x12;\n'
    b'\x06target\x18\x02 \x01(\x0e2#.etcdserverpb.Compare.CompareTargetR\x06target\x12\x10'
    b'\n\x03key\x18\x03 \x01(\x0cR\x03key\x12\x1a\n\x07version\x18\x04 \x01(\x03H\x00R\x07version\x12)\n\x0fcreate_revis'
    b'ion\x18\x05 \x01(\x03H\x00R\x0ecreateRevision\x12#\n\x0cmod_revision\x18\x06 \x01(\x03H\x00R\x0bmodRevi'
    b'sion\x12\x16\n\x05value\x18\x07 \x01(\x0cH\x00R\x05value\x12\x16\n\x05lease\x18\x08 \x01(\x03H\x00R\x05lease\x12\x1b\n\trang'
    b'e_end\x18@ \x01(\x0cR\x08rangeEnd"@\n\rCompareResult\x12\t\n\x05EQUAL\x10\x00\x12\x0b\n\x07GREATER'
    b'\x10\x01\x12\x08\n\x04LESS\x10\x02\x12\r\n\tNOT_EQUAL\x10\x03"G\n\rCompareTarget\x12\x0b\n\x07VERSION\x10\x00\x12\n\n'
    b'\x06CREATE\x10\x01\x12\x07\n\x03MOD\x10\x02\x12\t\n\x05VALUE\x10\x03\x12\t\n\x05LEASE\x10\x04B\x0e\n\x0ctarget_union"\xa3\x01\n'
    b'\nTxnRequest\x12/\n\x07compare\x18\x01 \x03(\x0b2\x15.etcdserverpb.CompareR\x07compare'
    b'\x121\n\x07success\x18\x02 \x03(\x0b2\x17.etcdserverpb.RequestOpR\x07success\x121\n\x07failu'
    b're\x18\x03 \x03(\x0b2\x17.etcdserverpb.RequestOpR\x07failure"\x99\x01\n\x0bTxnResponse\x124'
    b'\n\x06header\x18\x01 \x01(\x0b2\x1c.etcdserverpb.ResponseHeaderR\x06header\x12\x1c\n\tsucc'
    b'eeded\x18\x02 \x01(\x08R\tsucceeded\x126\n\tresponses\x18\x03 \x03(\x0b2\x18.etcdserverpb.Res'
    b'ponseOpR\tresponses"K\n\x11CompactionRequest\x12\x1a\n\x08revision\x18\x01 \x01(\x03R\x08r'
    b'evision\x12\x1a\n\x08physical\x18\x02 \x01(\x08R\x08physical"J\n\x12CompactionResponse\x124\n'
    b'\x06header\x18\x01 \x01(\x0b2\x1c.etcdserverpb.ResponseHeaderR\x06header"\x86\x02\n\x0cWatc'
    b'hRequest\x12I\n\x0ecreate_request\x18\x01 \x01(\x0b2 .etcdserverpb.WatchCreateR'
    b'equestH\x00R\rcreateRequest\x12I\n\x0ecancel_request\x18\x02 \x01(\x0b2 .etcdserver'
    b'pb.WatchCancelRequestH\x00R\rcancelRequest\x12O\n\x10progress_request\x18\x03'
    b' \x01(\x0b2".etcdserverpb.WatchProgressRequestH\x00R\x0fprogressRequestB'
    b'\x0f\n\rrequest_union"\xd1\x02\n\x12WatchCreateRequest\x12\x10\n\x03key\x18\x01 \x01(\x0cR\x03key\x12\x1b\n'
    b'\trange_end\x18\x02 \x01(\x0cR\x08rangeEnd\x12%\n\x0estart_revision\x18\x03 \x01(\x03R\rstartRev'
    b"ision\x12'\n\x0fprogress_notify\x18\x04 \x01(\x08R\x0eprogressNotify\x12E\n\x07filters\x18\x05 "
    b'\x03(\x0e2+.etcdserverpb.WatchCreateRequest.FilterTypeR\x07filters\x12\x17\n'
    b'\x07prev_kv\x18\x06 \x01(\x08R\x06prevKv\x12\x19\n\x08watch_id\x18\x07 \x01(\x03R\x07watchId\x12\x1a\n\x08fragmen'
    b't\x18\x08 \x01(\x08R\x08fragment"%\n\nFilterType\x12\t\n\x05NOPUT\x10\x00\x12\x0c\n\x08NODELETE\x10\x01"/\n\x12'
    b'WatchCancelRequest\x12\x19\n\x08watch_id\x18\x01 \x01(\x03R\x07watchId"\x16\n\x14WatchProgre'
    b'ssRequest"\xa9\x02\n\rWatchResponse\x124\n\x06header\x18\x01 \x01(\x0b2\x1c.etcdserverpb.R'
    b'esponseHeaderR\x06header\x12\x19\n\x08watch_id\x18\x02 \x01(\x03R\x07watchId\x12\x18\n\x07created\x18'
    b'\x03 \x01(\x08R\x07created\x12\x1a\n\x08canceled\x18\x04 \x01(\x08R\x08canceled\x12)\n\x10compact_revisi'
    b'on\x18\x05 \x01(\x03R\x0fcompactRevision\x12#\n\rcancel_reason\x18\x06 \x01(\tR\x0ccancelReas'
    b'on\x12\x1a\n\x08fragment\x18\x07 \x01(\x08R\x08fragment\x12%\n\x06events\x18\x0b \x03(\x0b2\r.mvccpb.Even'
    b'tR\x06events"5\n\x11LeaseGrantRequest\x12\x10\n\x03TTL\x18\x01 \x01(\x03R\x03TTL\x12\x0e\n\x02ID\x18\x02 \x01(\x03'
    b'R\x02ID"\x82\x01\n\x12LeaseGrantResponse\x124\n\x06header\x18\x01 \x01(\x0b2\x1c.etcdserverpb.R'
    b'esponseHeaderR\x06header\x12\x0e\n\x02ID\x18\x02 \x01(\x03R\x02ID\x12\x10\n\x03TTL\x18\x03 \x01(\x03R\x03TTL\x12\x14\n\x05e'
    b'rror\x18\x04 \x01(\tR\x05error"$\n\x12LeaseRevokeRequest\x12\x0e\n\x02ID\x18\x01 \x01(\x03R\x02ID"K\n\x13L'
    b'easeRevokeResponse\x124\n\x06header\x18\x01 \x01(\x0b2\x1c.etcdserverpb.ResponseHe'
    b'aderR\x06header"\'\n\x15LeaseKeepAliveRequest\x12\x0e\n\x02ID\x18\x01 \x01(\x03R\x02ID"p\n\x16Lea'
    b'seKeepAliveResponse\x124\n\x06header\x18\x01 \x01(\x0b2\x1c.etcdserverpb.ResponseH'
    b'eaderR\x06header\x12\x0e\n\x02ID\x18\x02 \x01(\x03R\x02ID\x12\x10\n\x03TTL\x18\x03 \x01(\x03R\x03TTL"<\n\x16LeaseTime'
    b'ToLiveRequest\x12\x0e\n\x02ID\x18\x01 \x01(\x03R\x02ID\x12\x12\n\x04keys\x18\x02 \x01(\x08R\x04keys"\xa5\x01\n\x17LeaseT'
    b'imeToLiveResponse\x124\n\x06header\x18\x01 \x01(\x0b2\x1c.etcdserverpb.ResponseHea'
    b'derR\x06header\x12\x0e\n\x02ID\x18\x02 \x01(\x03R\x02ID\x12\x10\n\x03TTL\x18\x03 \x01(\x03R\x03TTL\x12\x1e\n\ngrantedTTL\x18'
    b'\x04 \x01(\x03R\ngrantedTTL\x12\x12\n\x04keys\x18\x05 \x03(\x0cR\x04keys"\x86\x01\n\x06Member\x12\x0e\n\x02ID\x18\x01 \x01(\x04'
    b'R\x02ID\x12\x12\n\x04name\x18\x02 \x01(\tR\x04name\x12\x1a\n\x08peerURLs\x18\x03 \x03(\tR\x08peerURLs\x12\x1e\n\nclie'
    b'ntURLs\x18\x04 \x03(\tR\nclientURLs\x12\x1c\n\tisLearner\x18\x05 \x01(\x08R\tisLearner"7\n\x11Me'
    b'mberListRequest\x12"\n\x0clinearizable\x18\x01 \x01(\x08R\x0clinearizable"z\n\x12Membe'
    b'rListResponse\x124\n\x06header\x18\x01 \x01(\x0b2\x1c.etcdserverpb.ResponseHeaderR'
    b'\x06header\x12.\n\x07members\x18\x02 \x03(\x0b2\x14.etcdserverpb.MemberR\x07members"\x0f\n\rS'
    b'tatusRequest"\xce\x02\n\x0eStatusResponse\x124\n\x06header\x18\x01 \x01(\x0b2\x1c.etcdserver'
    b'pb.ResponseHeaderR\x06header\x12\x18\n\x07version\x18\x02 \x01(\tR\x07version\x12\x16\n\x06dbSiz'
    b'e\x18\x03 \x01(\x03R\x06dbSize\x12\x16\n\x06leader\x18\x04 \x01(\x04R\x06leader\x12\x1c\n\traftIndex\x18\x05 \x01(\x04R\t'
    b'raftIndex\x12\x1a\n\x08raftTerm\x18\x06 \x01(\x04R\x08raftTerm\x12*\n\x10raftAppliedIndex\x18\x07 '
    b'\x01(\x04R\x10raftAppliedIndex\x12\x16\n\x06errors\x18\x08 \x03(\tR\x06errors\x12 \n\x0bdbSizeInUse'
    b'\x18\t \x01(\x03R\x0bdbSizeInUse\x12\x1c\n\tisLearner\x18\n \x01(\x08R\tisLearner"E\n\x13Authent'
    b'icateRequest\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x1a\n\x08password\x18\x02 \x01(\tR\x08password'
    b'"b\n\x14AuthenticateResponse\x124\n\x06header\x18\x01 \x01(\x0b2\x1c.etcdserverpb.Resp'
    b'onseHeaderR\x06header\x12\x14\n\x05token\x18\x02 \x01(\tR\x05token2\xe0\x02\n\x02KV\x12@\n\x05Range\x12\x1a.e'
    b'tcdserverpb.RangeRequest\x1a\x1b.etcdserverpb.RangeResponse\x12:\n\x03Put'
    b'\x12\x18.etcdserverpb.PutRequest\x1a\x19.etcdserverpb.PutResponse\x12R\n\x0bDel'
    b'eteRange\x12 .etcdserverpb.DeleteRangeRequest\x1a!.etcdserverpb.De'
    b'leteRangeResponse\x12:\n\x03Txn\x12\x18.etcdserverpb.TxnRequest\x1a\x19.etcdser'
    b'verpb.TxnResponse\x12L\n\x07Compact\x12\x1f.etcdserverpb.CompactionReques'
    b't\x1a .etcdserverpb.CompactionResponse2M\n\x05Watch\x12D\n\x05Watch\x12\x1a.etcd'
    b'serverpb.WatchRequest\x1a\x1b.etcdserverpb.WatchResponse(\x010\x012\xed\x02\n\x05L'
    b'ease\x12O\n\nLeaseGrant\x12\x1f.etcdserverpb.LeaseGrantRequest\x1a .etcdse'
    b'rverpb.LeaseGrantResponse\x12R\n\x0bLeaseRevoke\x12 .etcdserverpb.Leas'
    b'eRevokeRequest\x1a!.etcdserverpb.LeaseRevokeResponse\x12_\n\x0eLeaseKe'
    b'epAlive\x12#.etcdserverpb.LeaseKeepAliveRequest\x1a$.etcdserverpb.'
    b'LeaseKeepAliveResponse(\x010\x01\x12^\n\x0fLeaseTimeToLive\x12$.etcdserverpb'
    b'.LeaseTimeToLiveRequest\x1a%.etcdserverpb.LeaseTimeToLiveRespon'
    b'se2Z\n\x07Cluster\x12O\n\nMemberList\x12\x1f.etcdserverpb.MemberListRequest'
    b'\x1a .etcdserverpb.MemberListResponse2R\n\x0bMaintenance\x12C\n\x06Status\x12'
    b'\x1b.etcdserverpb.StatusRequest\x1a\x1c.etcdserverpb.StatusResponse2]'
    b'\n\x04Auth\x12U\n\x0cAuthenticate\x12!.etcdserverpb.AuthenticateRequest\x1a".'
    b'etcdserverpb.AuthenticateResponseb\x06proto3',
)

# A pool of our own: another etcd library in the process cannot clash with it.
_pool = descriptor_pool.DescriptorPool()
for _data in _FILES:
    _pool.AddSerializedFile(_data)


def _message(name: str):
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


KeyValue = _message("mvccpb.KeyValue")
Event = _message("mvccpb.Event")
ResponseHeader = _message("etcdserverpb.ResponseHeader")
RangeRequest = _message("etcdserverpb.RangeRequest")
RangeResponse = _message("etcdserverpb.RangeResponse")
PutRequest = _message("etcdserverpb.PutRequest")
PutResponse = _message("etcdserverpb.PutResponse")
DeleteRangeRequest = _message("etcdserverpb.DeleteRangeRequest")
DeleteRangeResponse = _message("etcdserverpb.DeleteRangeResponse")
RequestOp = _message("etcdserverpb.RequestOp")
ResponseOp = _message("etcdserverpb.ResponseOp")
Compare = _message("etcdserverpb.Compare")
TxnRequest = _message("etcdserverpb.TxnRequest")
TxnResponse = _message("etcdserverpb.TxnResponse")
CompactionRequest = _message("etcdserverpb.CompactionRequest")
CompactionResponse = _message("etcdserverpb.CompactionResponse")
WatchRequest = _message("etcdserverpb.WatchRequest")
WatchCreateRequest = _message("etcdserverpb.WatchCreateRequest")
WatchCancelRequest = _message("etcdserverpb.WatchCancelRequest")
WatchProgressRequest = _message("etcdserverpb.WatchProgressRequest")
WatchResponse = _message("etcdserverpb.WatchResponse")
LeaseGrantRequest = _message("etcdserverpb.LeaseGrantRequest")
LeaseGrantResponse = _message("etcdserverpb.LeaseGrantResponse")
LeaseRevokeRequest = _message("etcdserverpb.LeaseRevokeRequest")
LeaseRevokeResponse = _message("etcdserverpb.LeaseRevokeResponse")
LeaseKeepAliveRequest = _message("etcdserverpb.LeaseKeepAliveRequest")
LeaseKeepAliveResponse = _message("etcdserverpb.LeaseKeepAliveResponse")
LeaseTimeToLiveRequest = _message("etcdserverpb.LeaseTimeToLiveRequest")
LeaseTimeToLiveResponse = _message("etcdserverpb.LeaseTimeToLiveResponse")
Member = _message("etcdserverpb.Member")
MemberListRequest = _message("etcdserverpb.MemberListRequest")
MemberListResponse = _message("etcdserverpb.MemberListResponse")
StatusRequest = _message("etcdserverpb.StatusRequest")
StatusResponse = _message("etcdserverpb.StatusResponse")
AuthenticateRequest = _message("etcdserverpb.AuthenticateRequest")
AuthenticateResponse = _message("etcdserverpb.AuthenticateResponse")

#: name: (path, request, response, streams both ways)
METHODS = {
    "Range": ("/etcdserverpb.KV/Range", RangeRequest, RangeResponse, False),
    "Put": ("/etcdserverpb.KV/Put", PutRequest, PutResponse, False),
    "DeleteRange": ("/etcdserverpb.KV/DeleteRange", DeleteRangeRequest, DeleteRangeResponse, False),
    "Txn": ("/etcdserverpb.KV/Txn", TxnRequest, TxnResponse, False),
    "Compact": ("/etcdserverpb.KV/Compact", CompactionRequest, CompactionResponse, False),
    "Watch": ("/etcdserverpb.Watch/Watch", WatchRequest, WatchResponse, True),
    "LeaseGrant": ("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest, LeaseGrantResponse, False),
    "LeaseRevoke": ("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest, LeaseRevokeResponse, False),
    "LeaseKeepAlive": ("/etcdserverpb.Lease/LeaseKeepAlive", LeaseKeepAliveRequest, LeaseKeepAliveResponse, True),
    "LeaseTimeToLive": ("/etcdserverpb.Lease/LeaseTimeToLive", LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, False),
    "MemberList": ("/etcdserverpb.Cluster/MemberList", MemberListRequest, MemberListResponse, False),
    "Status": ("/etcdserverpb.Maintenance/Status", StatusRequest, StatusResponse, False),
    "Authenticate": ("/etcdserverpb.Auth/Authenticate", AuthenticateRequest, AuthenticateResponse, False),
}
