"""AES-XTS over sectors gives the vectors of IEEE 1619, and OpenSSL's results sector by sector."""

from __future__ import annotations

from itertools import product

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from hypothesis import assume, given
from hypothesis import strategies as st

from mystfuse.crypto import sector_ciphers as sectors
from tests.support.dm_crypt import encrypt_sectors, randbytes
from tests.support.sector_ciphers import FIRST_SECTORS, SECTOR_SIZES, cipher_of, on_both_kernels

# IEEE 1619-2007, annex B: the ciphertexts of the vectors whose data unit has 512 bytes, XTS-AES-128 (4 to 9) and
# XTS-AES-256 (10 to 14).
IEEE_1619 = {
    4: """
27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89cc78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736dd
b4d35412328063fd2aab53e5ea1e0a9f332500a5df9487d07a5c92cc512c8866c7e860ce93fdf166a24912b422976146ae20ce846bb7dc9ba94a767a
aef20c0d61ad02655ea92dc4c4e41a8952c651d33174be51a10c421110e6d81588ede82103a252d8a750e8768defffed9122810aaeb99f9172af82b6
04dc4b8e51bcb08235a6f4341332e4ca60482a4ba1a03b3e65008fc5da76b70bf1690db4eae29c5f1badd03c5ccf2a55d705ddcd86d449511ceb7ec3
0bf12b1fa35b913f9f747a8afd1b130e94bff94effd01a91735ca1726acd0b197c4e5b03393697e126826fb6bbde8ecc1e08298516e2c9ed03ff3c1b
7860f6de76d4cecd94c8119855ef5297ca67e9f3e7ff72b1e99785ca0a7e7720c5b36dc6d72cac9574c8cbbc2f801e23e56fd344b07f22154beba0f0
8ce8891e643ed995c94d9a69c9f1b5f499027a78572aeebd74d20cc39881c213ee770b1010e4bea718846977ae119f7a023ab58cca0ad752afe656bb
3c17256a9f6e9bf19fdd5a38fc82bbe872c5539edb609ef4f79c203ebb140f2e583cb2ad15b4aa5b655016a8449277dbd477ef2c8d6c017db738b18d
eb4a427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568
""",
    5: """
264d3ca8512194fec312c8c9891f279fefdd608d0c027b60483a3fa811d65ee59d52d9e40ec5672d81532b38b6b089ce951f0f9c35590b8b978d1752
13f329bb1c2fd30f2f7f30492a61a532a79f51d36f5e31a7c9a12c286082ff7d2394d18f783e1a8e72c722caaaa52d8f065657d2631fd25bfd8e5baa
d6e527d763517501c68c5edc3cdd55435c532d7125c8614deed9adaa3acade5888b87bef641c4c994c8091b5bcd387f3963fb5bc37aa922fbfe3df4e
5b915e6eb514717bdd2a74079a5073f5c4bfd46adf7d282e7a393a52579d11a028da4d9cd9c77124f9648ee383b1ac763930e7162a8d37f350b2f74b
8472cf09902063c6b32e8c2d9290cefbd7346d1c779a0df50edcde4531da07b099c638e83a755944df2aef1aa31752fd323dcb710fb4bfbb9d22b925
bc3577e1b8949e729a90bbafeacf7f7879e7b1147e28ba0bae940db795a61b15ecf4df8db07b824bb062802cc98a9545bb2aaeed77cb3fc6db15dcd7
d80d7d5bc406c4970a3478ada8899b329198eb61c193fb6275aa8ca340344a75a862aebe92eee1ce032fd950b47d7704a3876923b4ad62844bf4a09c
4dbe8b4397184b7471360c9564880aedddb9baa4af2e75394b08cd32ff479c57a07d3eab5d54de5f9738b8d27f27a9f0ab11799d7b7ffefb2704c95c
6ad12c39f1e867a4b7b1d7818a4b753dfd2a89ccb45e001a03a867b187f225dd
""",
    6: """
fa762a3680b76007928ed4a4f49a9456031b704782e65e16cecb54ed7d017b5e18abd67b338e81078f21edb7868d901ebe9c731a7c18b5e6dec1d6a7
2e078ac9a4262f860beefa14f4e821018272e411a951502b6e79066e84252c3346f3aa62344351a291d4bedc7a07618bdea2af63145cc7a4b8d40706
91ae890cd65733e7946e9021a1dffc4c59f159425ee6d50ca9b135fa6162cea18a939838dc000fb386fad086acce5ac07cb2ece7fd580b00cfa5e985
89631dc25e8e2a3daf2ffdec26531659912c9d8f7a15e5865ea8fb5816d6207052bd7128cd743c12c8118791a4736811935eb982a532349e31dd401e
0b660a568cb1a4711f552f55ded59f1f15bf7196b3ca12a91e488ef59d64f3a02bf45239499ac6176ae321c4a211ec545365971c5d3f4f09d4eb139b
fdf2073d33180b21002b65cc9865e76cb24cd92c874c24c18350399a936ab3637079295d76c417776b94efce3a0ef7206b15110519655c956cbd8b24
89405ee2b09a6b6eebe0c53790a12a8998378b33a5b71159625f4ba49d2a2fdba59fbf0897bc7aabd8d707dc140a80f0f309f835d3da54ab584e501d
fa0ee977fec543f74186a802b9a37adb3e8291eca04d66520d229e60401e7282bef486ae059aa70696e0e305d777140a7a883ecdcb69b9ff938e8a42
31864c69ca2c2043bed007ff3e605e014bcf518138dc3a25c5e236171a2d01d6
""",
    7: """
d55f684f81f4426e9fde92a5ff02df2ac896af63962888a97910c1379e20b0a3b1db613fb7fe2e07004329ea5c22bfd33e3dbe4cf58cc608c2c26c19
a2e2fe22f98732c2b5cb844cc6c0702d91e1d50fc4382a7eba5635cd602432a2306ac4ce82f8d70c8d9bc15f918fe71e74c622d5cf71178bf6e0b9cc
9f2b41dd8dbe441c41cd0c73a6dc47a348f6702f9d0e9b1b1431e948e299b9ec2272ab2c5f0c7be86affa5dec87a0bee81d3d50007edaa2bcfccb356
05155ff36ed8edd4a40dcd4b243acd11b2b987bdbfaf91a7cac27e9c5aea525ee53de7b2d3332c8644402b823e94a7db26276d2d23aa07180f76b4fd
29b9c0823099c9d62c519880aee7e9697617c1497d47bf3e571950311421b6b734d38b0db91eb85331b91ea9f61530f54512a5a52a4bad589eb69781
d537f23297bb459bdad2948a29e1550bf4787e0be95bb173cf5fab17dab7a13a052a63453d97ccec1a321954886b7a1299faaeecae35c6eaaca753b0
41b5e5f093bf83397fd21dd6b3012066fcc058cc32c3b09d7562dee29509b5839392c9ff05f51f3166aaac4ac5f238038a3045e6f72e48ef0fe8bc67
5e82c318a268e43970271bf119b81bf6a982746554f84e72b9f00280a320a08142923c23c883423ff949827f29bbacdc1ccdb04938ce6098c95ba6b3
2528f4ef78eed778b2e122ddfd1cbdd11d1c0a6783e011fc536d63d053260637
""",
    8: """
72efc1ebfe1ee25975a6eb3aa8589dda2b261f1c85bdab442a9e5b2dd1d7c3957a16fc08e526d4b1223f1b1232a11af274c3d70dac57f83e0983c498
f1a6f1aecb021c3e70085a1e527f1ce41ee5911a82020161529cd82773762daf5459de94a0a82adae7e1703c808543c29ed6fb32d9e004327c135518
0c995a07741493a09c21ba01a387882da4f62534b87bb15d60d197201c0fd3bf30c1500a3ecfecdd66d8721f90bcc4c17ee925c61b0a03727a9c0d5f
5ca462fbfa0af1c2513a9d9d4b5345bd27a5f6e653f751693e6b6a2b8ead57d511e00e58c45b7b8d005af79288f5c7c22fd4f1bf7a898b03a5634c6a
1ae3f9fae5de4f296a2896b23e7ed43ed14fa5a2803f4d28f0d3ffcf24757677aebdb47bb388378708948a8d4126ed1839e0da29a537a8c198b3c66a
b00712dd261674bf45a73d67f76914f830ca014b65596f27e4cf62de66125a5566df9975155628b400fbfb3a29040ed50faffdbb18aece7c5c446932
60aab386c0a37b11b114f1c415aebb653be468179428d43a4d8bc3ec38813eca30a13cf1bb18d524f1992d44d8b1a42ea30b22e6c95b199d8d182f88
40b09d059585c31ad691fa0619ff038aca2c39a943421157361717c49d322028a74648113bd8c9d7ec77cf3c89c1ec8718ceff8516d96b34c3c614f1
0699c9abc4ed0411506223bea16af35c883accdbe1104eef0cfdb54e12fb230a
""",
    9: """
3260ae8dad1f4a32c5cafe3ab0eb95549d461a67ceb9e5aa2d3afb62dece0553193ba50c75be251e08d1d08f1088576c7efdfaaf3f459559571e1251
1753b07af073f35da06af0ce0bbf6b8f5ccc5cea500ec1b211bd51f63b606bf6528796ca12173ba39b8935ee44ccce646f90a45bf9ccc567f0ace13d
c2d53ebeedc81f58b2e41179dddf0d5a5c42f5d8506c1a5d2f8f59f3ea873cbcd0eec19acbf325423bd3dcb8c2b1bf1d1eaed0eba7f0698e4314fbeb
2f1566d1b9253008cbccf45a2b0d9c5c9c21474f4076e02be26050b99dee4fd68a4cf890e496e4fcae7b70f94ea5a9062da0daeba1993d2ccd1dd3c2
44b8428801495a58b216547e7e847c46d1d756377b6242d2e5fb83bf752b54e0df71e889f3a2bb0f4c10805bf3c590376e3c24e22ff57f7fa9655773
75325cea5d920db94b9c336b455f6e894c01866fe9fbb8c8d3f70a2957285f6dfb5dcd8cbf54782f8fe7766d4723819913ac773421e3a31095866bad
22c86a6036b2518b2059b4229d18c8c2ccbdf906c6cc6e82464ee57bddb0bebcb1dc645325bfb3e665ef7251082c88ebb1cf203bd779fdd38675713c
8daadd17e1cabee432b09787b6ddf3304e38b731b45df5df51b78fcfb3d32466028d0ba36555e7e11ab0ee0666061d1645d962444bc47a38188930a8
4b4d561395c73c087021927ca638b7afc8a8679ccb84c26555440ec7f10445cd
""",
    10: """
1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb
4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf10
00020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d766
7b327f6c8cd7557e12ac3a0f93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6
dc3966380ad8fecb17b6ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1505eb309326d68378f837459
5c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d8939272
84c58754cce294529f8614dcd2aba991925fedc4ae74ffac6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e
9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed43851ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa
773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151
""",
    11: """
77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11e1d0225438e093242d6db274fde801d4cae06f2092c728b2478559df
58e837c2469ee4a4fa794e4bbc7f39bc026e3cb72c33b0888f25b4acf56a2a9804f1ce6d3d6e1dc6ca181d4b546179d55544aa7760c40d06741539c7
e3cd9d2f6650b2013fd0eeb8c2b8e3d8d240ccae2d4c98320a7442e1c8d75a42d6e6cfa4c2eca1798d158c7aecdf82490f24bb9b38e108bcda12c3fa
f9a21141c3613b58367f922aaa26cd22f23d708dae699ad7cb40a8ad0b6e2784973dcb605684c08b8d6998c69aac049921871ebb65301a4619ca80ec
b485a31d744223ce8ddc2394828d6a80470c092f5ba413c3378fa6054255c6f9df4495862bbb3287681f931b687c888abf844dfc8fc28331e579928c
d12bd2390ae123cf03818d14dedde5c0c24c8ab018bfca75ca096f2d531f3d1619e785f1ada437cab92e980558b3dce1474afb75bfedbf8ff54cb261
8e0244c9ac0d3c66fb51598cd2db11f9be39791abe447c63094f7c453b7ff87cb5bb36b7c79efb0872d17058b83b15ab0866ad8a58656c5a7e20dbdf
308b2461d97c0ec0024a2715055249cf3b478ddd4740de654f75ca686e0d7345c69ed50cdc2a8b332b1f8824108ac937eb050585608ee734097fc090
54fbff89eeaeea791f4a7ab1f9868294a4f9e27b42af8100cb9d59cef9645803
""",
    12: """
e387aaa58ba483afa7e8eb469778317ecf4cf573aa9d4eac23f2cdf914e4e200a8b490e42ee646802dc6ee2b471b278195d60918ececb44bf79966f8
3faba0499298ebc699c0c8634715a320bb4f075d622e74c8c932004f25b41e361025b5a87815391f6108fc4afa6a05d9303c6ba68a128a55705d4159
85832fdeaae6c8e19110e84d1b1f199a2692119edc96132658f09da7c623efcec712537a3d94c0bf5d7e352ec94ae5797fdb377dc1551150721adf15
bd26a8efc2fcaad56881fa9e62462c28f30ae1ceaca93c345cf243b73f542e2074a705bd2643bb9f7cc79bb6e7091ea6e232df0f9ad0d6cf50232787
6d82207abf2115cdacf6d5a48f6c1879a65b115f0f8b3cb3c59d15dd8c769bc014795a1837f3901b5845eb491adfefe097b1fa30a12fc1f65ba22905
031539971a10f2f36c321bb51331cdefb39e3964c7ef079994f5b69b2edd83a71ef549971ee93f44eac3938fcdd61d01fa71799da3a8091c4c48aa9e
d263ff0749df95d44fef6a0bb578ec69456aa5408ae32c7af08ad7ba8921287e3bbee31b767be06a0e705c864a769137df28292283ea81a2480241b4
4d9921cdbec1bc28dc1fda114bd8e5217ac9d8ebafa720e9da4f9ace231cc949e5b96fe76ffc21063fddc83a6b8679c00d35e09576a875305bed5f36
ed242c8900dd1fa965bc950dfce09b132263a1eef52dd6888c309f5a7d712826
""",
    13: """
bf53d2dade78e822a4d949a9bc6766b01b06a8ef70d26748c6a7fc36d80ae4c5520f7c4ab0ac8544424fa405162fef5a6b7f229498063618d39f0003
cb5fb8d1c86b643497da1ff945c8d3bedeca4f479702a7a735f043ddb1d6aaade3c4a0ac7ca7f3fa5279bef56f82cd7a2f38672e824814e10700300a
055e1630b8f1cb0e919f5e942010a416e2bf48cb46993d3cb6a51c19bacf864785a00bc2ecff15d350875b246ed53e68be6f55bd7e05cfc2b2ed6432
198a6444b6d8c247fab941f569768b5c429366f1d3f00f0345b96123d56204c01c63b22ce78baf116e525ed90fdea39fa469494d3866c31e05f295ff
21fea8d4e6e13d67e47ce722e9698a1c1048d68ebcde76b86fcf976eab8aa9790268b7068e017a8b9b749409514f1053027fd16c3786ea1bac5f15cb
79711ee2abe82f5cf8b13ae73030ef5b9e4457e75d1304f988d62dd6fc4b94ed38ba831da4b7634971b6cd8ec325d9c61c00f1df73627ed3745a5e84
89f3a95c69639c32cd6e1d537a85f75cc844726e8a72fc0077ad22000f1d5078f6b866318c668f1ad03d5a5fced5219f2eabbd0aa5c0f460d183f044
04a0d6f469558e81fab24a167905ab4c7878502ad3e38fdbe62a41556cec37325759533ce8f25f367c87bb5578d667ae93f9e2fd99bcbc5f2fbba88c
f6516139420fcff3b7361d86322c4bd84c82f335abb152c4a93411373aaa8220
""",
    14: """
64497e5a831e4a932c09be3e5393376daa599548b816031d224bbf50a818ed2350eae7e96087c8a0db51ad290bd00c1ac1620857635bf246c176ab46
3be30b808da548081ac847b158e1264be25bb0910bbc92647108089415d45fab1b3d2604e8a8eff1ae4020cfa39936b66827b23f371b92200be90251
e6d73c5f86de5fd4a950781933d79a28272b782a2ec313efdfcc0628f43d744c2dc2ff3dcb66999b50c7ca895b0c64791eeaa5f29499fb1c026f84ce
5b5c72ba1083cddb5ce45434631665c333b60b11593fb253c5179a2c8db813782a004856a1653011e93fb6d876c18366dd8683f53412c0c180f9c848
592d593f8609ca736317d356e13e2bff3a9f59cd9aeb19cd482593d8c46128bb32423b37a9adfb482b99453fbe25a41bf6feb4aa0bef5ed24bf73c76
2978025482c13115e4015aac992e5613a3b5c2f685b84795cb6e9b2656d8c88157e52c42f978d8634c43d06fea928f2822e465aa6576e9bf41938450
6cc3ce3c54ac1a6f67dc66f3b30191e698380bc999b05abce19dc0c6dcc2dd001ec535ba18deb2df1a101023108318c75dc98611a09dc48a0acdec67
6fabdf222f07e026f059b672b56e5cbc8e1d21bbd867dd927212054681d70ea737134cdfce93b6f82ae22423274e58a0821cc5502e2d0ab4585e94de
6975be5e0b4efce51cd3e70c25a1fbbbd609d273ad5b0d59631c531f6a0a57b9
""",
}


def vector(number: int) -> bytes:
    return bytes.fromhex(IEEE_1619[number])


# The plaintext of vector 7; those of 5, 6, 8 and 9 are the ciphertexts of the vector before.
IEEE_1619_PLAIN_7 = """
8e41b78c390b5af9d758bb214a67e9f6bf7727b09ac6124084c37611398fa45daad94868600ed391fb1acd4857a95b466e62ef9f4b377244d1c152e7
b30d731aad30c716d214b707aed99eb5b5e580b3e887cf7497465651d4b60e6042051da3693c3b78c14489543be8b6ad0ba629565bba202313ba7b0d
0c94a3252b676f46cc02ce0f8a7d34c0ed229129673c1f61aed579d08a9203a25aac3a77e9db60267996db38df637356d9dcd1632e369939f2a29d89
345c66e05066f1a3677aef18dea4113faeb629e46721a66d0a7e785d3e29af2594eb67dfa982affe0aac058f6e15864269b135418261fc3afb089472
cf68c45dd7f231c6249ba0255e1e033833fc4d00a3fe02132d7bc3873614b8aee34273581ea0325c81f0270affa13641d052d36f0757d484014354d0
2d6883ca15c24d8c3956b1bd027bcf41f151fd8023c5340e5606f37e90fdb87c86fb4fa634b3718a30bace06a66eaf8f63c4aa3b637826a87fe8cfa4
4282e92cb1615af3a28e53bc74c7cba1a0977be9065d0c1a5dec6c54ae38d37f37aa35283e048e5530a85c4e7a29d7b92ec0c3169cdf2a805c7604bc
e60049b9fb7b8eaac10f51ae23794ceba68bb58112e293b9b692ca721b37c662f8574ed4dba6f88e170881c82cddc1034a0ca7e284bf0962b6b26292
d836fa9f73c1ac770eef0f2d3a1eaf61d3e03555fd424eedd67e18a18094f888
"""


PATTERN = bytes(range(256)) * 2


# Vector -> key of both halves, data unit sequence number, plaintext.
XTS_128_KEY = bytes.fromhex("2718281828459045235360287471352631415926535897932384626433832795")
XTS_256_KEY = bytes.fromhex(
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592"
)
IEEE_1619_INPUTS = {
    4: (XTS_128_KEY, 0, PATTERN),
    5: (XTS_128_KEY, 1, vector(4)),
    6: (XTS_128_KEY, 2, vector(5)),
    7: (XTS_128_KEY, 0xFD, bytes.fromhex(IEEE_1619_PLAIN_7)),
    8: (XTS_128_KEY, 0xFE, vector(7)),
    9: (XTS_128_KEY, 0xFF, vector(8)),
    10: (XTS_256_KEY, 0xFF, PATTERN),
    11: (XTS_256_KEY, 0xFFFF, PATTERN),
    12: (XTS_256_KEY, 0xFFFFFF, PATTERN),
    13: (XTS_256_KEY, 0xFFFFFFFF, PATTERN),
    14: (XTS_256_KEY, 0xFFFFFFFFFF, PATTERN),
}


def xts_block_by_block(key: bytes, data: bytes, number: int) -> bytes:
    """One data unit of XTS as IEEE 1619 spells it out; OpenSSL has no XTS with AES-192."""
    half = len(key) // 2
    encrypt = Cipher(AES(key[:half]), modes.ECB()).encryptor().update
    tweak = Cipher(AES(key[half:]), modes.ECB()).encryptor().update(number.to_bytes(16, "little"))
    encrypted = b""
    for start in range(0, len(data), 16):
        inner = bytes(left ^ right for left, right in zip(data[start : start + 16], tweak, strict=True))
        encrypted += bytes(left ^ right for left, right in zip(encrypt(inner), tweak, strict=True))
        doubled = int.from_bytes(tweak, "little") << 1
        tweak = (doubled ^ (1 << 128 | 0x87) if doubled >> 128 else doubled).to_bytes(16, "little")
    return encrypted


@on_both_kernels
@pytest.mark.parametrize("number", IEEE_1619)
def test_xts_has_the_vectors_of_ieee_1619(number: int) -> None:
    key, unit, plain = IEEE_1619_INPUTS[number]
    cipher = sectors.XtsCipher(memoryview(key))
    assert cipher.encrypt(plain, unit) == vector(number)
    assert cipher.decrypt(vector(number), unit) == plain


@on_both_kernels
def test_vectors_of_ieee_1619_that_follow_one_another_come_from_one_call() -> None:
    cipher = sectors.XtsCipher(memoryview(XTS_128_KEY))
    assert cipher.encrypt(PATTERN + vector(4) + vector(5), 0) == vector(4) + vector(5) + vector(6)
    assert cipher.decrypt(vector(7) + vector(8) + vector(9), 0xFD) == IEEE_1619_INPUTS[7][2] + vector(7) + vector(8)


@on_both_kernels
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
@pytest.mark.parametrize("key_size", [32, 64])
@pytest.mark.parametrize("iv_mode", ["plain64", "plain"])
def test_xts_is_openssls_sector_by_sector(iv_mode: str, key_size: int, sector_size: int) -> None:
    for length, first in product((sector_size, 64 << 10, (64 << 10) + sector_size, 300 << 10), FIRST_SECTORS):
        key, plain = randbytes(key_size, (length, first)), randbytes(length, first)
        encrypted = encrypt_sectors(f"aes-xts-{iv_mode}", key, plain, first, sector_size)
        assert cipher_of("xts", iv_mode, key, sector_size).decrypt(encrypted, first) == plain
        if iv_mode == "plain64":
            assert sectors.XtsCipher(memoryview(key), sector_size).encrypt(plain, first) == encrypted


@on_both_kernels
@given(data=st.data())
def test_xts_is_openssls_for_any_key_place_and_tweak(data: st.DataObject) -> None:
    key = data.draw(st.binary(min_size=32, max_size=32) | st.binary(min_size=64, max_size=64))
    assume(key[: len(key) // 2] != key[len(key) // 2 :])
    sector_size = data.draw(st.sampled_from(SECTOR_SIZES))
    plain = randbytes(sector_size * data.draw(st.integers(1, 40)))
    iv_mode = data.draw(st.sampled_from(["plain64", "plain"]))
    sector, iv_tweak = data.draw(st.integers(0, 1 << 54)), data.draw(st.integers(0, (1 << 63) - 1))
    encrypted = encrypt_sectors(f"aes-xts-{iv_mode}", key, plain, sector, sector_size, iv_tweak)
    assert cipher_of("xts", iv_mode, key, sector_size, iv_tweak).decrypt(encrypted, sector) == plain


@on_both_kernels
@pytest.mark.parametrize("key_size", [32, 48, 64])
def test_xts_is_the_standards_block_by_block(key_size: int) -> None:
    key, plain = randbytes(key_size), randbytes(2048)
    expected = b"".join(
        xts_block_by_block(key, plain[start : start + 512], 7 + start // 512) for start in range(0, 2048, 512)
    )
    assert sectors.XtsCipher(memoryview(key)).encrypt(plain, 7) == expected
    assert cipher_of("xts", "plain64", key).decrypt(expected, 7) == plain


@on_both_kernels
def test_plain_wraps_at_32_bits_and_plain64_does_not() -> None:
    key, plain = randbytes(64), randbytes(4 * 512)
    wrapped = encrypt_sectors("aes-xts-plain64", key, plain[:1024], 0xFFFFFFFE) + encrypt_sectors(
        "aes-xts-plain64", key, plain[1024:], 0
    )
    assert cipher_of("xts", "plain", key).decrypt(wrapped, 0xFFFFFFFE) == plain
    assert cipher_of("xts", "plain64", key).decrypt(wrapped, 0xFFFFFFFE)[:1024] == plain[:1024]
    assert cipher_of("xts", "plain64", key).decrypt(wrapped, 0xFFFFFFFE)[1024:] != plain[1024:]


@on_both_kernels
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_xts_decrypts_what_it_encrypted(kind: type, sector_size: int) -> None:
    cipher = sectors.XtsCipher(memoryview(randbytes(64)), sector_size, iv_tweak=99)
    plain = randbytes(200 << 10)
    encrypted = cipher.encrypt(kind(plain), 1 << 33)
    assert len(encrypted) == len(plain) and encrypted != plain
    assert cipher.decrypt(kind(encrypted), 1 << 33) == plain
    assert cipher.encrypt(b"", 5) == cipher.decrypt(b"", 5) == b""


@on_both_kernels
def test_iv_tweak_moves_the_sectors() -> None:
    key, plain = randbytes(64), randbytes(4096)
    tweaked = sectors.XtsCipher(memoryview(key), iv_tweak=0x123456789)
    assert tweaked.encrypt(plain, 10) == sectors.XtsCipher(memoryview(key)).encrypt(plain, 0x123456789 + 10)
    assert tweaked.encrypt(plain, 10) != sectors.XtsCipher(memoryview(key)).encrypt(plain, 10)
    assert tweaked.encrypt(plain, 10) == encrypt_sectors("aes-xts-plain64", key, plain, 10, iv_tweak=0x123456789)


@on_both_kernels
def test_vectors_of_large_sectors_count_units_of_512_bytes() -> None:
    key, plain = randbytes(64), randbytes(3 * 4096)
    cipher = sectors.XtsCipher(memoryview(key), 4096)
    units = [
        Cipher(AES(key), modes.XTS(number.to_bytes(16, "little"))).encryptor().update(plain[start : start + 4096])
        for number, start in ((16, 0), (24, 4096), (32, 8192))
    ]
    assert cipher.encrypt(plain, 16) == b"".join(units)
    assert cipher.decrypt(units[2], 32) == plain[8192:]
