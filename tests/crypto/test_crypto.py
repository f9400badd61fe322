"""AES over sectors, keys from passphrases, and their memory: published vectors, and OpenSSL sector by sector."""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from textwrap import dedent

import pytest
import trio
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from mystfuse.crypto import sectors
from mystfuse.crypto.key_derivation import derive_argon2, derive_pbkdf2, merge_key, split_key
from mystfuse.crypto.secret import Secret
from mystfuse.crypto.sectors import SectorCipher, XtsCipher, find_zero_sectors, make_sector_cipher
from mystfuse.devices.crypt import CryptDevice
from mystfuse.devices.device import Extent
from mystfuse.errors import ImageReadError, IntegrityError
from mystfuse.formats.luks import HASHES
from mystfuse.image.keys import Keys
from mystfuse.system import threads
from mystfuse.system.workers import INLINE_BYTES
from tests.support.ext2_editor import MemoryDevice

ROOT = Path(__file__).parents[2]
SECTOR_SIZES = (512, 1024, 2048, 4096)
FIRST_SECTORS = (0, 8, 0xFFFFFFF8, 0xFFFFFFFF, 0x100000000, 1 << 40)
"""The first of consecutive sectors, some on either side of where 32 bits end."""

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

AF_KNOWN = {
    "sha1": "45a50550c983a78df8ac8fedd099d6edaaf7142a5ed1ce7369111de0817f11d3"
    "46a8748dacca1485f7629094ebf0bfeecf43cd23989911f8c17d1e92a2cabf11",
    "sha256": "6e14402a4b80f979d5ae7cd9ec9f4add0c6bd08f037174a4bf92ff24537155d5"
    "a5dd4d6701d470c8d5fb12d2849a972a803e0b095916dcc124344250ffd168fd",
    "sha512": "d10993fa89fd4c214da2fdf10f6d30e72903dc7318942c3122b21befb02b69c1"
    "beb43e9d30632d4b0a3d3fdb913c42d9d04dee97831d1c54defd7f32020a1926",
}


PATTERN = bytes(range(256)) * 2


def vector(number: int) -> bytes:
    return bytes.fromhex(IEEE_1619[number])


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

# NIST SP 800-38A, appendix F: keys of F.1 and F.2, plaintext (the same everywhere), ciphertexts of ECB-AES (F.1.1,
# F.1.3, F.1.5) and CBC-AES (F.2.1, F.2.3, F.2.5).
NIST_KEYS = {
    128: "2b7e151628aed2a6abf7158809cf4f3c",
    192: "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
    256: "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
}
NIST_PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
NIST_ECB = {
    128: "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf"
    "43b1cd7f598ece23881b00e3ed0306887b0c785e27e8ad3f8223207104725dd4",
    192: "bd334f1d6e45f25ff712a214571fa5cc974104846d0ad3ad7734ecb3ecee4eef"
    "ef7afd2270e2e60adce0ba2face6444e9a4b41ba738d6c72fb16691603c18e0e",
    256: "f3eed1bdb5d2a03c064b5a7e3db181f8591ccb10d410ed26dc5ba74a31362870"
    "b6ed21b99ca6f4f9f153e7b1beafed1d23304b7a39f9f3ff067d8d8f9e24ecc7",
}
NIST_CBC_VECTOR = bytes(range(16))
NIST_CBC = {
    128: "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"
    "73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7",
    192: "4f021db243bc633d7178183a9fa071e8b4d9ada9ad7dedf4e5e738763f69145a"
    "571b242012fb7ae07fa9baac3df102e008b0e27988598881d920a9e64f5615cd",
    256: "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"
    "39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b",
}

# Linux, crypto/testmgr.h, essiv(cbc(aes),aes,sha256), the first two: key, vector before its encryption, plaintext,
# ciphertext. The vectors' second halves are zeros, as those of sectors are.
ESSIV = [
    (
        "06a9214036b8a15b512e03d534120006",
        "3dafba429d9eb4300000000000000000",
        b"Single block msg",
        "fa59e75f415665c336ca6b72109f8cd4",
    ),
    (
        "c286696d887c9aa0611bbb3e2025a45a",
        "562e17996d093d280000000000000000",
        bytes(range(32)),
        "c8599afe79e67b20067d550a5ec7b5a70b9c80d215a1b86dc6ab7b65d9fd88eb",
    ),
]

# RFC 6070, PBKDF2-HMAC-SHA1 (without the one of 16,777,216 iterations): password, salt, iterations, key.
RFC_6070 = [
    (b"password", b"salt", 1, "0c60c80f961f0e71f3a9b524af6012062fe037a6"),
    (b"password", b"salt", 2, "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957"),
    (b"password", b"salt", 4096, "4b007901b765489abead49d926f721d065a429c1"),
    (
        b"passwordPASSWORDpassword",
        b"saltSALTsaltSALTsaltSALTsaltSALTsalt",
        4096,
        "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038",
    ),
    (b"pass\0word", b"sa\0lt", 4096, "56fa6aa75548099dcc37d7f03425e0c3"),
]

# RFC 7914, section 11, PBKDF2-HMAC-SHA-256: password, salt, iterations, key.
RFC_7914 = [
    (
        b"passwd",
        b"salt",
        1,
        "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
        "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783",
    ),
    (
        b"Password",
        b"NaCl",
        80000,
        "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56"
        "a1d425a1225833549adb841b51c9b3176a272bdebba1d078478f62b397f33c8d",
    ),
]

# Argon2 version 0x13 (RFC 9106). The RFC's own vectors have a secret and associated data, which LUKS2 and so our
# function do not; these are of the reference implementation, phc-winner-argon2, src/test.c: variant, passes, KiB,
# lanes, password, salt -> 32 bytes of key.
ARGON2 = {
    "argon2i 2 65536 1 password somesalt": "c1628832147d9720c5bd1cfd61367078729f6dfb6f8fea9ff98158e0d7816ed0",
    "argon2i 2 256 1 password somesalt": "89e9029f4637b295beb027056a7336c414fadd43f6b208645281cb214a56452f",
    "argon2i 2 256 2 password somesalt": "4ff5ce2769a1d7f4c8a491df09d41a9fbe90e5eb02155a13e4c01e20cd4eab61",
    "argon2i 1 65536 1 password somesalt": "d168075c4d985e13ebeae560cf8b94c3b5d8a16c51916b6f4ac2da3ac11bbecf",
    "argon2id 2 65536 1 password somesalt": "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7",
    "argon2id 2 256 1 password somesalt": "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe",
    "argon2id 2 256 2 password somesalt": "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037",
    "argon2id 1 65536 1 password somesalt": "f6a5adc1ba723dddef9b5ac1d464e180fcd9dffc9d1cbf76cca2fed795d9ca98",
    "argon2id 4 65536 1 password somesalt": "9025d48e68ef7395cca9079da4c4ec3affb3c8911fe4f86d1a2520856f63172c",
    "argon2id 2 65536 1 differentpassword somesalt": "0b84d652cf6b0c4beaef0dfe278ba6a80df6696281d7e0d2891b817d8c458fde",
    "argon2id 2 65536 1 password diffsalt": "bdf32b05ccc42eb15d58fd19b1f856b113da1e9a5874fdcc544308565aa8141c",
}


# -- the oracles: dm-crypt's rules with cryptography's own modes, one cipher object a sector


def iv_of(iv_mode: str, key: bytes, number: int) -> bytes:
    """dm-crypt's initialization vector for the 512-byte unit ``number`` (drivers/md/dm-crypt.c)."""
    if iv_mode == "plain":
        return (number & 0xFFFFFFFF).to_bytes(16, "little")
    vector = number.to_bytes(16, "little")
    if iv_mode == "essiv:sha256":
        vector = Cipher(AES(hashlib.sha256(key).digest()), modes.ECB()).encryptor().update(vector)
    return vector


def encrypt_by_sector(
    chain_mode: str, iv_mode: str, key: bytes, data: bytes, sector: int, sector_size: int = 512, iv_tweak: int = 0
) -> bytes:
    encrypted: list[bytes] = []
    for start in range(0, len(data), sector_size):
        vector = iv_of(iv_mode, key, sector + start // 512 + iv_tweak)
        mode = modes.XTS(vector) if chain_mode == "xts" else modes.CBC(vector)
        encrypted.append(Cipher(AES(key), mode).encryptor().update(data[start : start + sector_size]))
    return b"".join(encrypted)


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


def naive_split(key: bytes, stripes: int, hash_name: str, filling: bytes) -> bytes:
    """LUKS1 On-Disk Format Specification 1.2.3, section 2.4, read once more and done byte by byte."""
    size = len(key)

    def diffuse(block: bytes) -> bytes:
        step = hashlib.new(hash_name).digest_size
        result = b""
        for index in range(-(-size // step)):
            digest = hashlib.new(
                hash_name, struct.pack(">I", index) + block[index * step : (index + 1) * step]
            ).digest()
            result += digest[: min(step, size - index * step)]
        return result

    stripe, material = bytes(size), b""
    for index in range(stripes - 1):
        chosen = filling[index * size : (index + 1) * size]
        stripe = diffuse(bytes(left ^ right for left, right in zip(stripe, chosen, strict=True)))
        material += chosen
    return material + bytes(left ^ right for left, right in zip(stripe, key, strict=True))


def cipher_of(chain_mode: str, iv_mode: str, key: bytes, sector_size: int = 512, iv_tweak: int = 0) -> SectorCipher:
    return make_sector_cipher(chain_mode, iv_mode, memoryview(key), sector_size, iv_tweak)


def randbytes(size: int, seed: object = 0) -> bytes:
    return random.Random(repr(seed)).randbytes(size)


@pytest.fixture(scope="module", params=["native", "pure"])
def twin(request: pytest.FixtureRequest) -> Iterator[None]:
    """The ciphers of one twin of the kernel, then of the other, in the place of the one that was chosen at import."""
    module = importlib.import_module(f"mystfuse.kernels.{request.param}.sectors")
    with pytest.MonkeyPatch.context() as patch:
        for name in "XtsCipher", "CbcCipher", "EcbCipher":
            patch.setattr(sectors, name, getattr(module, name))
        patch.setattr(sys.modules[__name__], "XtsCipher", module.XtsCipher)
        yield


on_both_twins = pytest.mark.usefixtures("twin")


# -- XTS


@on_both_twins
@pytest.mark.parametrize("number", IEEE_1619)
def test_xts_has_the_vectors_of_ieee_1619(number: int) -> None:
    key, unit, plain = IEEE_1619_INPUTS[number]
    cipher = XtsCipher(memoryview(key))
    assert cipher.encrypt(plain, unit) == vector(number)
    assert cipher.decrypt(vector(number), unit) == plain


@on_both_twins
def test_vectors_of_ieee_1619_that_follow_one_another_come_from_one_call() -> None:
    cipher = XtsCipher(memoryview(XTS_128_KEY))
    assert cipher.encrypt(PATTERN + vector(4) + vector(5), 0) == vector(4) + vector(5) + vector(6)
    assert cipher.decrypt(vector(7) + vector(8) + vector(9), 0xFD) == IEEE_1619_INPUTS[7][2] + vector(7) + vector(8)


@on_both_twins
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
@pytest.mark.parametrize("key_size", [32, 64])
@pytest.mark.parametrize("iv_mode", ["plain64", "plain"])
def test_xts_is_openssls_sector_by_sector(iv_mode: str, key_size: int, sector_size: int) -> None:
    for length, first in product((sector_size, 64 << 10, (64 << 10) + sector_size, 300 << 10), FIRST_SECTORS):
        key, plain = randbytes(key_size, (length, first)), randbytes(length, first)
        encrypted = encrypt_by_sector("xts", iv_mode, key, plain, first, sector_size)
        assert cipher_of("xts", iv_mode, key, sector_size).decrypt(encrypted, first) == plain
        if iv_mode == "plain64":
            assert XtsCipher(memoryview(key), sector_size).encrypt(plain, first) == encrypted


@on_both_twins
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_xts_is_openssls_for_any_key_place_and_tweak(data: st.DataObject) -> None:
    key = data.draw(st.binary(min_size=32, max_size=32) | st.binary(min_size=64, max_size=64))
    assume(key[: len(key) // 2] != key[len(key) // 2 :])
    sector_size = data.draw(st.sampled_from(SECTOR_SIZES))
    plain = randbytes(sector_size * data.draw(st.integers(1, 40)))
    iv_mode = data.draw(st.sampled_from(["plain64", "plain"]))
    sector, iv_tweak = data.draw(st.integers(0, 1 << 54)), data.draw(st.integers(0, (1 << 63) - 1))
    encrypted = encrypt_by_sector("xts", iv_mode, key, plain, sector, sector_size, iv_tweak)
    assert cipher_of("xts", iv_mode, key, sector_size, iv_tweak).decrypt(encrypted, sector) == plain


@on_both_twins
@pytest.mark.parametrize("key_size", [32, 48, 64])
def test_xts_is_the_standards_block_by_block(key_size: int) -> None:
    key, plain = randbytes(key_size), randbytes(2048)
    expected = b"".join(
        xts_block_by_block(key, plain[start : start + 512], 7 + start // 512) for start in range(0, 2048, 512)
    )
    assert XtsCipher(memoryview(key)).encrypt(plain, 7) == expected
    assert cipher_of("xts", "plain64", key).decrypt(expected, 7) == plain


@on_both_twins
def test_plain_wraps_at_32_bits_and_plain64_does_not() -> None:
    key, plain = randbytes(64), randbytes(4 * 512)
    wrapped = encrypt_by_sector("xts", "plain64", key, plain[:1024], 0xFFFFFFFE) + encrypt_by_sector(
        "xts", "plain64", key, plain[1024:], 0
    )
    assert cipher_of("xts", "plain", key).decrypt(wrapped, 0xFFFFFFFE) == plain
    assert cipher_of("xts", "plain64", key).decrypt(wrapped, 0xFFFFFFFE)[:1024] == plain[:1024]
    assert cipher_of("xts", "plain64", key).decrypt(wrapped, 0xFFFFFFFE)[1024:] != plain[1024:]


@on_both_twins
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_xts_decrypts_what_it_encrypted(kind: type, sector_size: int) -> None:
    cipher = XtsCipher(memoryview(randbytes(64)), sector_size, iv_tweak=99)
    plain = randbytes(200 << 10)
    encrypted = cipher.encrypt(kind(plain), 1 << 33)
    assert len(encrypted) == len(plain) and encrypted != plain
    assert cipher.decrypt(kind(encrypted), 1 << 33) == plain
    assert cipher.encrypt(b"", 5) == cipher.decrypt(b"", 5) == b""


@on_both_twins
def test_iv_tweak_moves_the_sectors() -> None:
    key, plain = randbytes(64), randbytes(4096)
    tweaked = XtsCipher(memoryview(key), iv_tweak=0x123456789)
    assert tweaked.encrypt(plain, 10) == XtsCipher(memoryview(key)).encrypt(plain, 0x123456789 + 10)
    assert tweaked.encrypt(plain, 10) != XtsCipher(memoryview(key)).encrypt(plain, 10)
    assert tweaked.encrypt(plain, 10) == encrypt_by_sector("xts", "plain64", key, plain, 10, iv_tweak=0x123456789)


@on_both_twins
def test_vectors_of_large_sectors_count_units_of_512_bytes() -> None:
    key, plain = randbytes(64), randbytes(3 * 4096)
    cipher = XtsCipher(memoryview(key), 4096)
    units = [
        Cipher(AES(key), modes.XTS(number.to_bytes(16, "little"))).encryptor().update(plain[start : start + 4096])
        for number, start in ((16, 0), (24, 4096), (32, 8192))
    ]
    assert cipher.encrypt(plain, 16) == b"".join(units)
    assert cipher.decrypt(units[2], 32) == plain[8192:]


# -- CBC and ECB


@on_both_twins
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
@pytest.mark.parametrize("key_size", [16, 24, 32])
@pytest.mark.parametrize("iv_mode", ["plain", "plain64", "essiv:sha256"])
def test_cbc_is_openssls_sector_by_sector(iv_mode: str, key_size: int, sector_size: int) -> None:
    for length, first in product((sector_size, (64 << 10) + sector_size, 300 << 10), FIRST_SECTORS):
        key, plain = randbytes(key_size, (length, first)), randbytes(length, first)
        encrypted = encrypt_by_sector("cbc", iv_mode, key, plain, first, sector_size, iv_tweak=3)
        cipher = cipher_of("cbc", iv_mode, key, sector_size, iv_tweak=3)
        assert cipher.decrypt(encrypted, first) == plain
        assert cipher.encrypt(plain, first) == encrypted


@on_both_twins
@pytest.mark.parametrize("bits", NIST_CBC)
def test_cbc_has_the_vectors_of_nist(bits: int) -> None:
    # A sector's first block is added to a number; the blocks after one that is the vectors' vector are theirs.
    sector = (NIST_CBC_VECTOR + bytes.fromhex(NIST_CBC[bits])).ljust(512, b"\0")
    cipher = cipher_of("cbc", "plain64", bytes.fromhex(NIST_KEYS[bits]))
    plain = bytes(cipher.decrypt(sector, 12345))
    assert plain[16 : 16 + len(NIST_PLAIN)] == NIST_PLAIN
    assert cipher.encrypt(plain[: 16 + len(NIST_PLAIN)].ljust(512, b"\0"), 12345)[: 16 + len(NIST_PLAIN)] == (
        NIST_CBC_VECTOR + bytes.fromhex(NIST_CBC[bits])
    )


@on_both_twins
@pytest.mark.parametrize("key, vector, plain, encrypted", ESSIV)
def test_essiv_has_the_vectors_of_the_kernel(key: str, vector: str, plain: bytes, encrypted: str) -> None:
    sector = bytes.fromhex(encrypted).ljust(512, b"\0")
    number = int.from_bytes(bytes.fromhex(vector), "little")
    cipher = cipher_of("cbc", "essiv:sha256", bytes.fromhex(key))
    assert cipher.decrypt(sector, number)[: len(plain)] == plain
    assert cipher.encrypt(plain.ljust(512, b"\0"), number)[: len(plain)] == bytes.fromhex(encrypted)


@on_both_twins
def test_ecb_takes_whole_blocks() -> None:
    cipher = cipher_of("ecb", "", bytes(range(16)))
    with pytest.raises(ValueError, match="17 bytes"):
        cipher.decrypt(bytes(17), 0)
    with pytest.raises(ValueError, match="17 bytes"):
        cipher.encrypt(bytes(17), 0)
    assert len(cipher.decrypt(bytes(32), 0)) == len(cipher.encrypt(bytes(32), 0)) == 32


@on_both_twins
@pytest.mark.parametrize("bits", NIST_ECB)
@pytest.mark.parametrize("sector", [0, 1, 1 << 40])
def test_ecb_has_the_vectors_of_nist_wherever_they_are(bits: int, sector: int) -> None:
    cipher = cipher_of("ecb", "", bytes.fromhex(NIST_KEYS[bits]), 4096, 77)
    encrypted = bytes.fromhex(NIST_ECB[bits])
    assert cipher.decrypt(encrypted, sector) == NIST_PLAIN
    assert cipher.decrypt(memoryview(encrypted * 5000), sector) == NIST_PLAIN * 5000
    assert cipher.encrypt(memoryview(NIST_PLAIN * 5000), sector) == encrypted * 5000


# -- any cipher


@on_both_twins
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
@pytest.mark.parametrize("chain_mode, iv_mode, key_size", [("xts", "plain64", 64), ("cbc", "plain", 32)])
def test_parts_of_sectors_are_refused(chain_mode: str, iv_mode: str, key_size: int, sector_size: int) -> None:
    cipher = cipher_of(chain_mode, iv_mode, randbytes(key_size), sector_size)
    for length in (
        1,
        16,
        sector_size - 1,
        sector_size - 16,
        sector_size + 16,
        (64 << 10) + 1,
        (64 << 10) + sector_size - 512 + 1,
    ):
        with pytest.raises(ValueError):
            cipher.decrypt(bytes(length), 0)
        with pytest.raises(ValueError):
            cipher.encrypt(bytes(length), 0)
    # A refusal leaves nothing behind in the cipher.
    plain = randbytes(2 * sector_size)
    encrypted = encrypt_by_sector(chain_mode, iv_mode, randbytes(key_size), plain, 8, sector_size)
    assert cipher.decrypt(encrypted, 8) == plain
    assert cipher.encrypt(plain, 8) == encrypted


@on_both_twins
@pytest.mark.parametrize(
    "chain_mode, iv_mode, key_size", [("xts", "plain64", 64), ("cbc", "essiv:sha256", 32), ("ecb", "", 32)]
)
def test_threads_may_share_a_cipher(chain_mode: str, iv_mode: str, key_size: int) -> None:
    key = randbytes(key_size)
    encrypted = randbytes(1 << 20)
    ranges = [
        (start, start + size) for start, size in product(range(0, 1 << 20, 160 << 10), (512, 16 << 10, 150 << 10))
    ]
    expected = [cipher_of(chain_mode, iv_mode, key).decrypt(encrypted[a:b], a // 512) for a, b in ranges]
    cipher, interval = cipher_of(chain_mode, iv_mode, key), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            results = pool.map(lambda ab: cipher.decrypt(encrypted[ab[0] : ab[1]], ab[0] // 512), ranges * 6)
            assert list(results) == expected * 6
    finally:
        sys.setswitchinterval(interval)


# -- zeros


def naive_zero_sectors(data: bytes) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for start in range(0, len(data) - 511, 512):
        if any(data[start : start + 512]):
            continue
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], start + 512)
        else:
            ranges.append((start, start + 512))
    return ranges


@st.composite
def holey(draw: st.DrawFn) -> bytes:
    """Runs of zeros and others, ending anywhere, mostly near the edges of sectors."""
    data = b""
    for _ in range(draw(st.integers(0, 8))):
        length = 512 * draw(st.integers(0, 3)) + draw(st.sampled_from([0, 0, 0, 1, 2, 255, 256, 510, 511]))
        data += draw(st.sampled_from([b"\0", b"\0", b"x"])) * length
    return data


@given(holey())
@settings(deadline=None)
@example(b"")
@example(bytes(511))
@example(bytes(512))
@example(b"x" + bytes(1022) + b"x" + bytes(512))
@example(b"x" + bytes(1023))
@example(bytes(512) + b"x" * 512 + bytes(1024))
def test_zero_sectors_are_found(data: bytes) -> None:
    assert find_zero_sectors(data) == naive_zero_sectors(data)


def test_a_single_bit_makes_a_sector_no_zero_sector() -> None:
    for position in range(512):
        data = bytearray(3 * 512)
        data[512 + position] = 0x80
        assert find_zero_sectors(bytes(data)) == [(0, 512), (1024, 1536)]


# -- keys from passphrases


@pytest.mark.parametrize("password, salt, iterations, expected", RFC_6070)
def test_pbkdf2_has_the_vectors_of_rfc_6070(password: bytes, salt: bytes, iterations: int, expected: str) -> None:
    key = derive_pbkdf2("sha1", memoryview(password), salt, iterations, len(expected) // 2)
    assert key.view.hex() == expected


@pytest.mark.parametrize("password, salt, iterations, expected", RFC_7914)
def test_pbkdf2_has_the_vectors_of_rfc_7914(password: bytes, salt: bytes, iterations: int, expected: str) -> None:
    key = derive_pbkdf2("sha256", memoryview(password), salt, iterations, len(expected) // 2)
    assert key.view.hex() == expected


@pytest.mark.parametrize("hash_name", HASHES)
@pytest.mark.parametrize("length", [1, 16, 20, 64, 100])
def test_pbkdf2_is_pythons_with_every_hash(hash_name: str, length: int) -> None:
    for password, salt in (b"correct horse", randbytes(32)), (b"", b""), (bytes(range(256)), b"\0"):
        key = derive_pbkdf2(hash_name, memoryview(password), salt, 17, length)
        assert key.view == hashlib.pbkdf2_hmac(hash_name, password, salt, 17, length)


@pytest.mark.parametrize("parameters, expected", ARGON2.items())
def test_argon2_has_the_vectors_of_its_reference(parameters: str, expected: str) -> None:
    variant, passes, memory, cpus, password, salt = parameters.split()
    key = derive_argon2(variant, memoryview(password.encode()), salt.encode(), int(passes), int(memory), int(cpus), 32)
    assert key.view.hex() == expected


def test_argon2_takes_an_empty_passphrase_and_gives_any_length() -> None:
    keys = [derive_argon2("argon2id", Secret(0).view, bytes(8), 1, 64, 1, length) for length in (16, 32, 64)]
    assert [len(key) for key in keys] == [16, 32, 64]
    assert len({bytes(key.view[:16]) for key in keys}) == 3


# -- the anti-forensic splitter


@pytest.mark.parametrize("stripes", [1, 2, 4000])
@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_a_key_is_split_as_the_specification_says_and_merged_again(size: int, hash_name: str, stripes: int) -> None:
    key, filling = randbytes(size, "key"), randbytes(size * (stripes - 1), "filling")
    asked: list[int] = []

    def fill(length: int) -> bytes:
        asked.append(length)
        return filling

    material = split_key(memoryview(key), stripes, hash_name, fill)
    assert sum(asked) == len(filling)
    assert material == naive_split(key, stripes, hash_name, filling)
    assert merge_key(memoryview(material), size, hash_name).view == key
    assert merge_key(material, size, hash_name).view == key


@pytest.mark.parametrize("hash_name, expected", AF_KNOWN.items())
def test_the_splitter_has_a_known_answer(hash_name: str, expected: str) -> None:
    """Computed with ``naive_split``: a key of 0 to 63, three stripes, filled with 64 to 191."""
    material = split_key(memoryview(bytes(range(64))), 3, hash_name, lambda length: bytes(range(64, 64 + length)))
    assert material[:128] == bytes(range(64, 192))
    assert material[128:].hex() == expected
    assert naive_split(bytes(range(64)), 3, hash_name, bytes(range(64, 192)))[128:].hex() == expected


@pytest.mark.parametrize(
    "size, hash_name, stripes", [(16, "sha1", 1), (32, "sha512", 2), (64, "sha1", 7), (48, "sha256", 7)]
)
def test_any_byte_flipped_loses_the_key(size: int, hash_name: str, stripes: int) -> None:
    key = randbytes(size)
    material = split_key(memoryview(key), stripes, hash_name, randbytes)
    for position in range(len(material)):
        material[position] ^= 1 << position % 8
        assert merge_key(material, size, hash_name).view != key
        material[position] ^= 1 << position % 8
    assert merge_key(material, size, hash_name).view == key


def test_a_byte_flipped_among_4000_stripes_loses_a_hash_of_the_key() -> None:
    key = randbytes(64)
    material = split_key(memoryview(key), 4000, "sha256", randbytes)
    for position in (0, 31, 32, 63, 64 * 2000 + 5, 64 * 3999 - 1):
        material[position] ^= 0x10
        damaged = bytes(merge_key(material, 64, "sha256").view)
        # Each half is hashed by itself.
        lost, kept = (slice(0, 32), slice(32, 64)) if position % 64 < 32 else (slice(32, 64), slice(0, 32))
        assert sum(left == right for left, right in zip(damaged[lost], key[lost], strict=True)) < 8
        assert damaged[kept] == key[kept]
        material[position] ^= 0x10


# -- secrets


def test_a_secret_is_zeros_until_it_is_written_and_after_it_is_wiped() -> None:
    secret = Secret(5000)
    assert len(secret) == len(secret.view) == 5000
    assert secret.view == bytes(5000)
    secret.view[:] = randbytes(5000)
    view = secret.view
    secret.wipe()
    assert view == bytes(5000)
    # It can be used again.
    secret.view[:3] = b"abc"
    assert bytes(secret.view[:4]) == b"abc\0"
    secret.lock()
    assert bytes(secret.view[:4]) == b"abc\0"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 1, 64, 4096, 4097])
def test_a_copy_is_a_copy(kind: type, size: int) -> None:
    original = bytearray(randbytes(size))
    secret = Secret.copy_of(kind(original))
    expected = bytes(original)
    original[:] = bytes(size)
    assert len(secret) == size and secret.view == expected


@pytest.mark.parametrize("size, limit", [(0, 10), (9, 10), (10, 10), (11, 10), (100_000, 99_999), (5, 0)])
def test_a_secret_is_read_up_to_the_limit(tmp_path: Path, size: int, limit: int) -> None:
    content = randbytes(size)
    (tmp_path / "key").write_bytes(content)
    with (tmp_path / "key").open("rb", buffering=0) as file:
        secret = Secret.read(file, limit)
        assert secret.view == content[:limit]
        assert file.read() == content[limit:]


def test_a_secret_is_read_from_a_pipe_that_gives_little_at_a_time() -> None:
    reader, writer = os.pipe()

    def feed() -> None:
        for part in (b"cor", b"rect", b" ", b"horse"):
            os.write(writer, part)
            time.sleep(0.01)
        os.close(writer)

    with open(reader, "rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        fed = pool.submit(feed)
        assert Secret.read(file, 1000).view == b"correct horse"
        fed.result()


def test_a_secret_does_not_show_its_contents() -> None:
    secret = Secret.copy_of(b"correct horse")
    for shown in repr(secret), str(secret), f"{secret}", repr([secret]), repr(Keys(passphrase=secret)):
        assert "correct" not in shown and "horse" not in shown
        assert "636f72" not in shown
    assert "13" in repr(secret)


def test_a_child_shares_the_secret_and_can_end_it_for_both() -> None:
    secret = Secret.copy_of(b"correct horse")
    child = os.fork()
    if child == 0:
        seen = secret.view == b"correct horse"
        secret.wipe()
        os._exit(0 if seen else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert secret.view == bytes(13)


def test_secrets_are_left_out_of_core_dumps_and_locked() -> None:
    script = """
        import mmap, re
        from mystfuse.crypto.secret import Secret
        secret = Secret(3 * mmap.PAGESIZE)
        import ctypes
        address = ctypes.addressof(ctypes.c_char.from_buffer(secret.view))
        for area in re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read()):
            start, end = (int(text, 16) for text in area.split(" ", 1)[0].split("-"))
            if start <= address < end:
                print(re.search(r"VmFlags:(.*)", area)[1], "|", re.search(r"Locked: *(\\d+)", area)[1])
    """
    shown = subprocess.run(
        [sys.executable, "-c", dedent(script)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    flags, locked = shown.split("|")
    assert "dd" in flags.split(), "it would be in a core dump"
    assert "sh" in flags.split(), "it is not shared with children"
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if os.geteuid() == 0 or limit == resource.RLIM_INFINITY or limit >= 1 << 20:
        assert "lo" in flags.split() and int(locked) >= 12, "it is not locked in memory"


# -- the process


def crash(tmp_path: Path, lines: str) -> tuple[str, int, list[str]]:
    """Run Python code that may dump core, and does not end well: what it wrote, its wait status, the files it left."""
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + dedent(lines)

    def allow_cores() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=directory, stdout=output, stderr=output, preexec_fn=allow_cores
        )
        _, status = os.waitpid(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return (tmp_path / "output").read_text(), status, [path.name for path in directory.iterdir()]


def test_a_hardened_process_says_so() -> None:
    script = """
        import ctypes, resource
        from mystfuse.crypto.secret import harden_process
        harden_process()
        print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
    """
    before = "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    assert subprocess.check_output([sys.executable, "-c", before], cwd=ROOT, text=True) == "1\n"
    shown = subprocess.check_output([sys.executable, "-c", dedent(script)], cwd=ROOT, text=True, timeout=60)
    assert shown == "(1, 1) 0\n"


@pytest.mark.parametrize("death", ["os.abort()", "os.kill(os.getpid(), signal.SIGSEGV)"])
def test_a_hardened_process_leaves_no_core(tmp_path: Path, death: str) -> None:
    hardened = "from mystfuse.crypto.secret import harden_process\nharden_process()\n"
    output, status, files = crash(tmp_path, f"import os, signal\n{hardened}{death}")
    assert os.WIFSIGNALED(status), output
    assert not os.WCOREDUMP(status) and files == []
    # A child inherits it.
    forked = (
        f"import os, signal\n{hardened}child = os.fork()\nif child: os._exit(os.WCOREDUMP(os.waitpid(child, 0)[1]))\n"
    )
    output, status, files = crash(tmp_path, forked + death)
    assert status == 0 and files == [], output
    # What would have been left without it.
    _, status, files = crash(tmp_path, f"import os, signal\n{death}")
    if not os.WCOREDUMP(status):
        pytest.skip("nothing dumps core here, hardened or not")


# -- the crypt device

PAYLOAD = 3 * 4096
"""Byte offset of the payload in the devices below."""


def crypt_device(size: int, sector_size: int = 512, behind: int = 0) -> tuple[CryptDevice, bytes]:
    """A device, and what must be read of it."""
    key, plain = randbytes(64), randbytes(size, "plain")
    below = (
        randbytes(PAYLOAD, "header") + encrypt_by_sector("xts", "plain64", key, plain, 0, sector_size) + bytes(behind)
    )
    cipher = cipher_of("xts", "plain64", key, sector_size)
    return CryptDevice(MemoryDevice(below), cipher, PAYLOAD, size, sector_size), plain


@on_both_twins
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
async def test_extents_at_and_across_any_boundary_are_read(sector_size: int) -> None:
    device, plain = crypt_device(64 << 10, sector_size)
    assert device.size == 64 << 10
    edges = [0, 1, 15, 16, 511, 512, 513, sector_size - 1, sector_size, sector_size + 1, 5 * sector_size - 3]
    edges += [(64 << 10) - back for back in (sector_size + 1, sector_size, sector_size - 1, 512, 2, 1, 0)]
    extents = [Extent(start, end - start) for start, end in product(edges, edges) if start < end]
    random.Random(0).shuffle(extents)
    # All at once, which goes through a thread, and each by itself.
    for extent, part in zip(extents, await device.read(extents), strict=True):
        assert part == plain[extent.offset : extent.end]
    for extent in extents[::7]:
        (part,) = await device.read([extent])
        assert part == plain[extent.offset : extent.end]


@on_both_twins
@given(st.lists(st.tuples(st.integers(0, 40_959), st.integers(1, 40_960)), max_size=6), st.sampled_from(SECTOR_SIZES))
@settings(max_examples=60, deadline=None)
def test_any_extents_are_read(ranges: list[tuple[int, int]], sector_size: int) -> None:
    device, plain = DEVICES[sector_size]
    extents = [Extent(offset, min(length, 40_960 - offset)) for offset, length in ranges]
    parts = trio.run(device.read, extents)
    assert [bytes(part) for part in parts] == [plain[extent.offset : extent.end] for extent in extents]


@on_both_twins
@pytest.mark.parametrize("behind", [0, 4096])
async def test_extents_outside_the_payload_are_refused(behind: int) -> None:
    """Also where the device below goes on; and the good ones beside them are not read."""
    device, plain = crypt_device(8192, behind=behind)
    for offset, length in [
        (8192, 1),
        (8191, 2),
        (0, 8193),
        (1 << 62, 1),
        (-1, 1),
        (-512, 512),
        (-1, 8193),
        (0, 0),
        (0, -1),
        (9000, -900),
    ]:
        with pytest.raises(ImageReadError):
            await device.read([Extent(offset, length)])
        with pytest.raises(ImageReadError):
            await device.read([Extent(0, 512), Extent(offset, length)])
    assert device.bytes_decrypted == 0
    (part,) = await device.read([Extent(0, 8192)])
    assert part == plain
    assert await device.read([]) == []


@on_both_twins
async def test_large_requests_are_decrypted_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    device, plain = crypt_device(1 << 20)
    threads: list[int] = []
    decrypt_into = XtsCipher.decrypt_into

    def noting(self: XtsCipher, data: bytes, sector: int, out: memoryview) -> None:
        threads.append(threading.get_ident())
        decrypt_into(self, data, sector, out)

    monkeypatch.setattr(XtsCipher, "decrypt_into", noting)
    for length in (1, INLINE_BYTES, INLINE_BYTES + 1, 1 << 20):
        (part,) = await device.read([Extent(0, length)])
        assert part == plain[:length]
    # The sum counts, with what the sectors have beside what is wanted.
    parts = await device.read([Extent(511, INLINE_BYTES // 2), Extent(1 << 19, INLINE_BYTES // 2)])
    assert [bytes(part) for part in parts] == [
        plain[511 : 511 + INLINE_BYTES // 2],
        plain[1 << 19 :][: INLINE_BYTES // 2],
    ]
    here = threading.get_ident()
    assert [thread == here for thread in threads] == [True, True, False, False, False, False]


@on_both_twins
async def test_many_tasks_read_one_device_at_once() -> None:
    device, plain = crypt_device(1 << 20, 4096)

    async def read(offset: int, length: int) -> None:
        (part,) = await device.read([Extent(offset, length)])
        assert part == plain[offset : offset + length]

    async with trio.open_nursery() as nursery:
        for offset in range(0, 600_000, 20_011):
            nursery.start_soon(read, offset, 300_007)
            nursery.start_soon(read, offset, 3)


@on_both_twins
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
async def test_bytes_decrypted_counts_whole_sectors(sector_size: int) -> None:
    device, _ = crypt_device(64 << 10, sector_size)
    await device.read([Extent(0, 1)])
    assert device.bytes_decrypted == sector_size
    await device.read([Extent(sector_size - 1, 2), Extent(0, sector_size)])
    assert device.bytes_decrypted == 4 * sector_size
    await device.read([Extent(0, 64 << 10)])
    assert device.bytes_decrypted == 4 * sector_size + (64 << 10)


@on_both_twins
async def test_what_fails_below_fails_above_and_is_not_decrypted() -> None:
    key, plain = randbytes(64), randbytes(8192)
    below = bytes(PAYLOAD) + encrypt_by_sector("xts", "plain64", key, plain, 0)
    device = CryptDevice(
        MemoryDevice(below, [range(PAYLOAD + 700, PAYLOAD + 701)]), cipher_of("xts", "plain64", key), PAYLOAD, 8192, 512
    )
    for extent in Extent(512, 1), Extent(511, 2), Extent(0, 8192):
        with pytest.raises(IntegrityError):
            await device.read([extent])
    assert device.bytes_decrypted == 0
    assert await device.read([Extent(0, 512), Extent(1024, 7168)]) == [plain[:512], plain[1024:]]


async def test_who_waits_for_a_thread_to_decrypt_waits_no_longer_for_others_that_wait(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, _ = crypt_device(2 * INLINE_BYTES)
    monkeypatch.setattr(threads._thread, "start_new_thread", lambda work, arguments: None)
    ended: list[float] = []

    async def read() -> None:
        with pytest.raises(ImageReadError, match="no thread"):
            await device.read([Extent(0, 2 * INLINE_BYTES)])
        ended.append(trio.current_time())

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(read)
    assert len(ended) == 8 and max(ended) - started <= 31


DEVICES = {sector_size: crypt_device(40_960, sector_size) for sector_size in SECTOR_SIZES}
