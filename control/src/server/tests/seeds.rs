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
