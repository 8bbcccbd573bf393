//! The Router documents that started the project apply as they stand, strictly.

use super::*;

const DOCUMENTS: [&str; 3] = [
    "
apiVersion: edge.example.com/v1
kind: Router
metadata:
  name: node-1
spec:
  frps:
    bindPort: 7000
    dashboardPort: 7500
  # 可选：advertisedServices 列表
status:
  activeServices:
    - name: mysql
      localPort: 7001
      targetPort: 3306
      clients:
        - id: pod-abc-mysql
          type: stcp
          localAddr: 127.0.66.1:3306
          serviceName: mysql
",
    "
apiVersion: edge.example.com/v1
kind: Router
metadata:
  name: node-1
spec:
  frps:
    bindPort: 7000
    dashboardPort: 7500
status:
  clients:
  - name: pod-abc
    address: 127.0.66.1:3306
",
    "
apiVersion: edge.example.com/v1
kind: Router
metadata:
  name: node-1
spec:
  frps:
    bindPort: 7000
    dashboardPort: 7500
  # 可选：明确声明此 Router 节点能代理的服务列表
  # advertisedServices:
  #   - name: mysql
  #     port: 3306
status:
  # 报告此 Router (frps) 当前实际代理的服务端口
  activeServices:
    - name: mysql # 服务名，应与 frpc 注册时提供的元数据关联
      localPort: 7001 # frps 监听的端口 (用于 stcp)
      targetPort: 3306 # 原始目标服务端口 (供参考)
  # 报告当前连接到此 Router (frps) 的客户端 (Sidecar/frpc)
      clients:
    - id: pod-abc-mysql # 唯一客户端标识 (e.g., podName-serviceName)
      type: stcp # 连接类型
      remoteAddr: <frpc_client_ip>:<frpc_client_port> # frpc 客户端地址
      localAddr: 127.0.66.1:3306 # frpc 在 Pod 内监听的地址和端口
      serviceName: mysql # 映射的服务名
",
];

/// The settings of the FRPServer document, which `spec.frps` takes too.
const FRPS: &str = "
apiVersion: edge.example.com/v1
kind: Router
metadata: {name: node-2}
spec:
  frps:
    allowPorts: [{end: 2000, start: 2000}]
    bindAddr: 0.0.0.0
    bindPort: 17000
    detailedErrorsToClient: true
    kcpBindPort: 17000
    natholeAnalysisDataReserveHours: 168
    proxyBindAddr: 0.0.0.0
    udpPacketSize: 1500
    userConnTimeout: 10
    version: v1
    vhostHTTPTimeout: 60
    webServer: {addr: 0.0.0.0, password: admin, port: 7500, user: admin}
";

#[tokio::test]
async fn they_apply_strictly_and_read_back() {
    let strict = format!("{ROUTERS}?fieldValidation=Strict");
    for document in DOCUMENTS {
        let server = Server::new().await;
        let answer = server
            .call(ADMIN, "POST", &strict, "application/yaml", document)
            .await;
        assert!(answer.warnings().is_empty());
        let created = answer.expect(201);
        assert_eq!(
            created["spec"],
            serde_json::json!({"frps": {"bindPort": 7000, "dashboardPort": 7500}})
        );
        assert_eq!(created.get("status"), None);

        // The same document on the status subresource: everything of it is kept.
        let path = format!("{ROUTERS}/node-1/status?fieldValidation=Strict");
        let answer = server
            .call(ADMIN, "PUT", &path, "application/yaml", document)
            .await;
        assert!(answer.warnings().is_empty());
        let kept = answer.expect(200);
        let sent: Value = serde_saphyr::from_str(document).unwrap();
        assert_eq!(kept["status"], sent["status"]);

        // And it reads as the typed resource.
        let typed: crate::api::Router = serde_json::from_value(kept).unwrap();
        let status = typed.status.unwrap();
        match status.active_services.first() {
            Some(service) => {
                assert_eq!(
                    (service.name.as_deref(), service.service_port()),
                    (Some("mysql"), Some(3306))
                );
                assert_eq!(
                    serde_json::to_value(&status.active_services).unwrap()[0]["localPort"],
                    7001
                );
            }
            None => assert_eq!(status.extra["clients"][0]["name"], "pod-abc"),
        }
        server.store.close().await;
    }
}

#[tokio::test]
async fn frps_settings_apply_and_the_password_stays_out_of_debug_output() {
    let server = Server::new().await;
    let strict = format!("{ROUTERS}?fieldValidation=Strict");
    let created = server
        .call(ADMIN, "POST", &strict, "application/yaml", FRPS)
        .await
        .expect(201);
    let sent: Value = serde_saphyr::from_str(FRPS).unwrap();
    assert_eq!(
        created["spec"], sent["spec"],
        "nothing is dropped, nothing is added"
    );
    let typed: crate::api::Router = serde_json::from_value(created.clone()).unwrap();
    let web = typed
        .spec
        .frps
        .as_ref()
        .unwrap()
        .web_server
        .as_ref()
        .unwrap();
    assert_eq!(web.password.as_ref().unwrap().expose(), "admin");
    assert!(format!("{web:?}").contains("***") && !format!("{:?}", web.password).contains("admin"));
    assert_eq!(
        serde_json::to_value(&typed).unwrap()["spec"],
        created["spec"],
        "the type loses nothing of the schema"
    );
}

const FRPSERVERS: &str = "/apis/tunnel.kubeinfra.io/v1alpha1/frpservers";

/// The FRPServer document as frp's operator shows it, its status included.
const FRPSERVER: &str = r#"
apiVersion: tunnel.kubeinfra.io/v1alpha1
kind: FRPServer
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"tunnel.kubeinfra.io/v1alpha1","kind":"FRPServer","metadata":{"annotations":{},"name":"frpserver-sample"},"spec":{"allowPorts":[{"end":2000,"start":2000}],"bindAddr":"0.0.0.0","bindPort":17000,"kcpBindPort":17000,"proxyBindAddr":"0.0.0.0","version":"v1","webServer":{"addr":"0.0.0.0","password":"s3cret","port":7500,"user":"admin"}}}
  creationTimestamp: "2025-05-04T14:09:04Z"
  generation: 1
  name: frpserver-sample
  resourceVersion: "689594"
  uid: 61fcd8f5-a5e4-47af-90e3-b5645b026c5a
spec:
  allowPorts:
  - end: 2000
    start: 2000
  bindAddr: 0.0.0.0
  bindPort: 17000
  detailedErrorsToClient: true
  kcpBindPort: 17000
  natholeAnalysisDataReserveHours: 168
  proxyBindAddr: 0.0.0.0
  udpPacketSize: 1500
  userConnTimeout: 10
  version: v1
  vhostHTTPTimeout: 60
  webServer:
    addr: 0.0.0.0
    password: s3cret
    port: 7500
    user: admin
status:
  activeConnections:
  - bytesIn: 0
    bytesOut: 0
    clientName: ""
    clientVersion: 0.61.2
    currentConnections: 0
    localAddr: ""
    proxyConfig:
      healthCheck: {}
      loadBalancer: {}
      localIP: 127.0.0.1
      name: mysql.abc
      remotePort: 2000
      transport:
        bandwidthLimitMode: client
      type: tcp
    proxyName: mysql.abc
    proxyType: tcp
    remoteAddr: ""
    startTime: "0000-05-04T23:10:04Z"
    status: online
    todayTrafficIn: 4029
    todayTrafficOut: 4969
  conditions:
  - lastTransitionTime: "2025-05-04T15:11:47Z"
    message: frp server is running
    observedGeneration: 1
    reason: Running
    status: "True"
    type: Ready
  serviceStatus:
    totalBytesIn: 0
    totalBytesOut: 0
    totalClients: 0
    totalConnections: 0
    totalProxies: 0
    uptime: 0s
"#;

#[tokio::test]
async fn an_frpserver_applies_as_it_stands() {
    let server = Server::new().await;
    let sent: Value = serde_saphyr::from_str(FRPSERVER).unwrap();
    let mut new = sent.clone();
    // What another server gave it, no server takes on a new object.
    new["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    let strict = format!("{FRPSERVERS}?fieldValidation=Strict");
    let media = "application/json";
    let answer = server
        .call(ADMIN, "POST", &strict, media, new.to_string())
        .await;
    assert!(answer.warnings().is_empty());
    let created = answer.expect(201);
    assert_eq!(created["spec"], sent["spec"]);
    assert_eq!(created.get("status"), None);

    new["metadata"].as_object_mut().unwrap().remove("uid");
    let path = format!("{FRPSERVERS}/frpserver-sample/status?fieldValidation=Strict");
    let kept = server
        .call(ADMIN, "PUT", &path, media, new.to_string())
        .await
        .expect(200);
    assert_eq!(kept["status"], sent["status"]);
    let typed: crate::api::FrpServer = serde_json::from_value(kept.clone()).unwrap();
    let again = serde_json::to_value(&typed).unwrap();
    assert_eq!(
        (&again["spec"], &again["status"]),
        (&kept["spec"], &kept["status"]),
        "the type loses nothing"
    );

    // Everybody reads it, only admins see the password: not in the spec, not in what kubectl remembers of it.
    let one = format!("{FRPSERVERS}/frpserver-sample");
    for (who, shown) in [(ADMIN, true), (POD, false), (HERE, false)] {
        for path in [FRPSERVERS, &one] {
            let answer = server.get(who, path).await;
            let text = std::str::from_utf8(&answer.body).unwrap();
            assert!(text.contains("mysql.abc"), "{who}: {text}");
            assert_eq!(text.contains("s3cret"), shown, "{who}: {text}");
        }
    }
    let wrong = r#"{"apiVersion":"tunnel.kubeinfra.io/v1alpha1","kind":"FRPServer","metadata":{"name":"b"},"spec":{"port":1}}"#;
    let refused = server.call(ADMIN, "POST", &strict, media, wrong).await;
    assert!(
        refused.message().contains("unknown field \"spec.port\""),
        "{}",
        refused.message()
    );
}
